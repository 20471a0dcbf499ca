"""Records of an evaluation: the effect of one sub-attack on one block."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAGIC = b"pafrec2\n"
LARGEST = 2**32
"""Maximal size of a record in bytes; nothing larger is written or read."""

_FACTS: Mapping[str, type] = {
    "block": int,
    "sub_attack": int,
    "label": str,
    "seed": int,
    "after": str,
    "forward": int,
    "backward": int,
    "exact": int,
    "note": dict,
}
_ARRAYS = {"ids": "int64", "labels": "int64", "predictions": "int64", "x_adv": "float32"}


@dataclass(frozen=True, eq=False)
class Record:
    """Effect of one sub-attack on the correctly classified samples of one block.

    Attributes:
        block: Number of the block, from 0.
        sub_attack: 0 for the clean images, then the sub-attacks in their order.
        label: Name of the sub-attack.
        seed: Seed of the random numbers.
        after: Fingerprint of the previous record of the block, or of the evaluation's identity. A record is valid only
            after that one, because it determines the attacked samples.
        ids: Samples, (n,) int64.
        labels: Their labels, (n,) int64.
        predictions: Class of each adversarial image, or of the clean image where none was found; (n,) int64,
            `NO_PREDICTION` where the logits are not finite. A sample is fooled where this differs from its label.
        x_adv: Adversarial images of the fooled samples, float32 (f, C, H, W); empty for sub-attack 0.
        forward: Images passed forward by the search.
        backward: Images passed backward.
        exact: Images passed forward by the unmodified model in float32.
        note: Worker, duration and the like; not part of the fingerprint.
    """

    block: int
    sub_attack: int
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

    @property
    def fooled(self) -> NDArray[np.bool_]:
        """Which samples are misclassified, (n,)."""
        return np.not_equal(self.predictions, self.labels)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything except the note, in hexadecimal digits."""
        facts = {name: getattr(self, name) for name in _FACTS if name != "note"}
        digest = hashlib.sha256(json.dumps([facts, self.x_adv.shape]).encode())
        for array in _arrays(self).values():
            digest.update(array.tobytes())
        return digest.hexdigest()


def encode(record: Record) -> bytes:
    """Serialise a record: magic number, SHA-256, safetensors with metadata.

    Raises:
        ValueError: The record is larger than `LARGEST`.
    """
    from safetensors.numpy import save

    facts = {name: kind(getattr(record, name)) for name, kind in _FACTS.items()}
    body = save(_arrays(record), {"record": json.dumps(facts)})
    data = MAGIC + hashlib.sha256(body).digest() + body
    if len(data) > LARGEST:
        raise ValueError(
            f"A record must have at most {LARGEST:,} bytes, got {len(data):,} for block {record.block} of "
            f"{len(record.ids)} samples. Pass a smaller block size and a new folder for the state."
        )
    return data


def decode(data: bytes) -> Record | None:
    """Read the output of `encode`; None if the bytes are anything else."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    start = len(MAGIC) + 32
    digest, body = data[len(MAGIC) : start], data[start:]
    if not data.startswith(MAGIC) or hashlib.sha256(body).digest() != digest:
        return None
    try:
        header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
        content: dict[str, Any] = json.loads(header["__metadata__"]["record"]) | load(body)
        record = Record(**content)
    except (SafetensorError, ValueError, TypeError, KeyError):
        return None
    return record if _is_consistent(record) else None


def _arrays(record: Record) -> dict[str, NDArray[Any]]:
    return {name: np.ascontiguousarray(getattr(record, name), kind) for name, kind in _ARRAYS.items()}


def _is_consistent(record: Record) -> bool:
    """Exclude a file with a correct hash that `encode` has not written."""
    return (
        all(type(getattr(record, name)) is kind for name, kind in _FACTS.items())
        and all(getattr(record, name).dtype == kind for name, kind in _ARRAYS.items())
        and record.ids.shape == record.labels.shape == record.predictions.shape == (record.ids.size,)
        and len(record.x_adv) == (np.count_nonzero(record.fooled) if record.sub_attack > 0 else 0)
    )
