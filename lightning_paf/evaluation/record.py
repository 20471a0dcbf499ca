"""One record of a ledger: what one attack did to one block of samples, as one checked file."""

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAGIC = b"pafrec1\n"
_LENGTHS = struct.Struct("<QQQ")
_HEAD = len(MAGIC) + _LENGTHS.size + 32

LARGEST = 2**32
"""Bytes that a record may have; nothing larger is written or read."""


class DamagedRecord(ValueError):
    """The bytes are not those of a whole record."""


@dataclass(frozen=True, eq=False)
class Record:
    """What one stage did to those samples of one block that were still correctly classified.

    Attributes:
        block: Number of the block, from 0.
        stage: 0 for the clean images, then the attacks in their order.
        label: Name of the stage.
        seed: Seed of the random numbers.
        after: Fingerprint of the record that this one follows: of the stage before, or of the header. A record is
            valid only after that one, for what it attacks follows from it.
        ids: Samples, (n,) int64.
        labels: Their labels, (n,) int64.
        predictions: Class of each on its adversarial image, or on the image itself where none was found; (n,) int64,
            `NO_PREDICTION` where the logits are not finite. A sample is fooled where this is not its label.
        x_adv: Adversarial images of the fooled, float32 (f, C, H, W); empty in stage 0, which makes none.
        forward: Images passed forward by the search.
        backward: Images passed backward.
        exact: Images passed forward by the untouched model in float32.
        note: How it came about (worker, seconds); no part of the fingerprint.
        fingerprint: SHA-256 of everything but the note, as `decode` found it.
    """

    block: int
    stage: int
    label: str
    seed: int
    after: str
    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    x_adv: NDArray[np.float32]
    forward: int = 0
    backward: int = 0
    exact: int = 0
    note: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str = ""

    @property
    def fooled(self) -> NDArray[np.bool_]:
        """Which samples are misclassified, (n,)."""
        return np.not_equal(self.predictions, self.labels)


_ARRAYS = {"ids": "int64", "labels": "int64", "predictions": "int64", "x_adv": "float32"}
_FINDINGS: Mapping[str, type] = {
    "block": int,
    "stage": int,
    "label": str,
    "seed": int,
    "after": str,
    "forward": int,
    "backward": int,
    "exact": int,
}


def encode(record: Record) -> bytes:
    """A record as bytes: magic, three lengths, a SHA-256 over the lengths and all that follows; findings, arrays, note.

    The arrays are in the safetensors format, the rest is JSON. Equal findings give equal bytes but for the note,
    whoever made them.

    Raises:
        ValueError: Larger than `LARGEST`.
    """
    from safetensors.numpy import save

    arrays = save({name: np.ascontiguousarray(getattr(record, name), kind) for name, kind in _ARRAYS.items()})
    parts = [_json({name: getattr(record, name) for name in _FINDINGS}), arrays, _json(dict(record.note))]
    if _HEAD + sum(map(len, parts)) > LARGEST:
        raise ValueError(
            f"A record may have {LARGEST:,} bytes, but block {record.block} ({len(record.ids)} samples) needs "
            f"{sum(map(len, parts)):,}. Give a smaller block size and a new ledger."
        )
    lengths = _LENGTHS.pack(*map(len, parts))
    return b"".join([MAGIC, lengths, _sha256(lengths, *parts).digest(), *parts])


def decode(data: bytes) -> Record:
    """The record that `encode` made into these bytes.

    Raises:
        DamagedRecord: They are cut off, changed, or something else.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    findings, arrays, note = _unframe(data)
    try:
        fingerprint = _sha256(findings, arrays).hexdigest()
        content: dict[str, Any] = json.loads(findings) | load(arrays)
        record = Record(**content, note=json.loads(note), fingerprint=fingerprint)
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise DamagedRecord(f"it holds no record ({error})") from error
    _check(record)
    return record


def _unframe(data: bytes) -> list[bytes]:
    """The three parts of a frame whose hash is right."""
    if len(data) < _HEAD or not data.startswith(MAGIC):
        raise DamagedRecord("it does not begin like a record")
    lengths = data[len(MAGIC) : len(MAGIC) + _LENGTHS.size]
    sizes = _LENGTHS.unpack(lengths)
    if _HEAD + sum(sizes) != len(data):  # nothing is ever allocated by a declared size
        raise DamagedRecord(f"it should have {_HEAD + sum(sizes):,} bytes, but has {len(data):,}")
    if _sha256(lengths, memoryview(data)[_HEAD:]).digest() != data[_HEAD - 32 : _HEAD]:
        raise DamagedRecord("its hash is wrong")
    ends = [_HEAD + sum(sizes[:part]) for part in range(4)]
    return [data[start:end] for start, end in pairwise(ends)]


def _check(record: Record) -> None:
    """Look for what a right hash does not exclude: a file made by something else."""
    for name, kind in _FINDINGS.items():
        if type(getattr(record, name)) is not kind:
            raise DamagedRecord(f"{name} is no {kind.__name__}")
    if any(getattr(record, name).dtype != kind for name, kind in _ARRAYS.items()):
        raise DamagedRecord("an array has the wrong type")
    if not record.ids.shape == record.labels.shape == record.predictions.shape == (record.ids.size,):
        raise DamagedRecord("its arrays do not have one entry a sample")
    if len(record.x_adv) != (np.count_nonzero(record.fooled) if record.stage > 0 else 0):
        raise DamagedRecord("it does not have one adversarial image a fooled sample")


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True).encode()


def _sha256(*parts: bytes | memoryview) -> "hashlib._Hash":
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest
