"""Records of an evaluation, and their storage on disk or in memory."""

import contextlib
import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_paf.evaluation.identity import Identity, check_same
from lightning_paf.utils.claim import Heartbeats, read_owner, take
from lightning_paf.utils.files import create_whole, explained, parse_json, write_whole

MAGIC = b"pafrec2\n"
MAX_BYTES = 2**32
"""Maximum size of a record in bytes; nothing larger is written or read."""

_FACTS: Mapping[str, type] = {
    **dict.fromkeys(("block", "sub_attack", "seed", "forward", "backward", "exact"), int),
    **dict.fromkeys(("label", "after"), str),
    "note": dict,
}
_HASHED = ("block", "sub_attack", "label", "seed", "after", "forward", "backward", "exact")
_ARRAYS = {"ids": "int64", "labels": "int64", "predictions": "int64", "x_adv": "float32"}
_IDENTITY = "identity.json"
_MAX_IDENTITY_BYTES = 2**24
_RECORD = re.compile(r"block-(\d{5,})\.sub-attack-(\d+)\.record")

Key = tuple[int, int]
"""Numbers of a block and a sub-attack."""


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
        predictions: Class of each adversarial image, or of the clean image if none was found; (n,) int64,
            `NO_PREDICTION` where the logits are not finite. A sample is fooled where this differs from its label.
        x_adv: Adversarial images of the fooled samples, float32 (f, C, H, W); empty for sub-attack 0.
        forward: Images passed forward by the search.
        backward: Images passed backward.
        exact: Images passed forward by the unmodified model in float32.
        note: Process, device and duration; not part of the fingerprint.
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
        """Mask of the misclassified samples, (n,)."""
        return np.not_equal(self.predictions, self.labels)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything except the note, in hexadecimal digits."""
        facts = {name: getattr(self, name) for name in _HASHED}
        digest = hashlib.sha256(json.dumps([facts, self.x_adv.shape]).encode())
        for array in _arrays(self).values():
            digest.update(array.tobytes())
        return digest.hexdigest()


def encode(record: Record) -> bytes:
    """Serialise a record: magic number, SHA-256, safetensors with metadata.

    Raises:
        ValueError: The record is larger than `MAX_BYTES`.
    """
    from safetensors.numpy import save

    facts = {name: kind(getattr(record, name)) for name, kind in _FACTS.items()}
    body = save(_arrays(record), {"record": json.dumps(facts)})
    data = MAGIC + hashlib.sha256(body).digest() + body
    if len(data) > MAX_BYTES:
        raise ValueError(
            f"A record must have at most {MAX_BYTES:,} bytes, got {len(data):,} for block {record.block} of "
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
    """Return whether `encode` can have written a record, which a hash cannot show."""
    return (
        all(type(getattr(record, name)) is kind for name, kind in _FACTS.items())
        and all(getattr(record, name).dtype == kind for name, kind in _ARRAYS.items())
        and record.ids.shape == record.labels.shape == record.predictions.shape == (record.ids.size,)
        and len(record.x_adv) == (np.count_nonzero(record.fooled) if record.sub_attack > 0 else 0)
    )


class MemoryState:
    """Records in memory, for an evaluation that is neither resumed nor shared."""

    def __init__(self) -> None:
        self._identity: dict[str, Any] | None = None
        self._records: dict[Key, Record] = {}

    def __str__(self) -> str:
        return "state in memory"

    def open(self, identity: Identity) -> None:
        """See `EvaluationState.open`."""
        self._identity = self._identity or identity.content()
        check_same(identity.content(), self._identity, str(self))

    def recorded(self) -> list[Key]:
        """See `EvaluationState.recorded`."""
        return sorted(self._records)

    def claim(self, block: int) -> AbstractContextManager[object] | None:
        """See `EvaluationState.claim`."""
        return contextlib.nullcontext()

    def owner(self, block: int) -> str:
        """See `EvaluationState.owner`."""
        return ""

    def read(self, block: int, sub_attack: int) -> Record | None:
        """See `EvaluationState.read`."""
        return self._records.get((block, sub_attack))

    def write(self, record: Record) -> Record:
        """See `EvaluationState.write`."""
        key = record.block, record.sub_attack
        first = self._records.get(key)
        if first is None or first.after != record.after:
            self._records[key] = record
        return self._records[key]


class EvaluationState:
    """Records in a folder, which several processes on several machines can share.

    One file for each record (`block-00003.sub-attack-1.record`), one for the identity of the evaluation, and one for
    each block in progress (`block-00003.claim`). Every file is created atomically and never changed. A record includes
    a hash; a damaged one (power failure, folder without atomic renaming) is replaced with a warning.

    Args:
        folder: Created if it does not exist.
        timeout: Seconds without a heartbeat after which a block of another machine is taken over. The block of a dead
            process on this machine (Linux) is taken over at once.

    Raises:
        ValueError: `timeout` is not positive. Methods: the folder cannot be read or written.
    """

    def __init__(self, folder: str | Path, timeout: float = 120.0) -> None:
        if not timeout > 0:
            raise ValueError(f"timeout must be positive, got {timeout}. Pass seconds, such as 120.")
        self.folder = Path(folder)
        self.timeout = timeout
        self._heartbeats = Heartbeats()

    def __str__(self) -> str:
        return f"state {self.folder}"

    def open(self, identity: Identity) -> None:
        """Start the evaluation, or resume it.

        Raises:
            ValueError: The state belongs to another evaluation; every difference is named.
        """
        path, content = self.folder / _IDENTITY, identity.content()
        data = json.dumps(content, indent=2).encode() + b"\n"
        with self._explained():
            self.folder.mkdir(parents=True, exist_ok=True)
            there = _read_identity(path)
            if there is None and not create_whole(path, data) and _read_identity(path) is None:
                warnings.warn(f"{path} is damaged and is written again.", stacklevel=2)
                write_whole(path, data)
            there = there or _read_identity(path)
        check_same(content, there or {}, str(self))

    def belongs_to(self, identity: Identity) -> bool:
        """Return whether an evaluation of this identity has been started in the folder."""
        with self._explained():
            return _read_identity(self.folder / _IDENTITY) == identity.content()

    def clear(self) -> None:
        """Remove all records."""
        with self._explained():
            for path in self.folder.glob("*.record"):
                path.unlink(missing_ok=True)

    def recorded(self) -> list[Key]:
        """Block and sub-attack of all records, in order; includes damaged ones."""
        with self._explained():
            matches = [_RECORD.fullmatch(path.name) for path in self.folder.iterdir()]
        return sorted((int(match[1]), int(match[2])) for match in matches if match)

    def claim(self, block: int) -> AbstractContextManager[object] | None:
        """Claim a block as a context manager; None if another process has claimed it."""
        with self._explained():
            claim = take(self._claim_path(block), self.timeout, self._heartbeats)
        if claim is not None:
            for partial in self.folder.glob(f"block-{block:05}.*.partial"):  # of a killed process
                with contextlib.suppress(OSError):
                    partial.unlink()
        return claim

    def owner(self, block: int) -> str:
        """Describe the process that works on a block; empty if there is none."""
        path = self._claim_path(block)
        owner = read_owner(path)
        return f"{owner} (last heartbeat {self._heartbeats.silence(path):.0f} s ago)" if owner else ""

    def read(self, block: int, sub_attack: int) -> Record | None:
        """Return a record, None if it is missing or damaged."""
        return self._valid(self._load(block, sub_attack), block, sub_attack)

    def write(self, record: Record) -> Record:
        """Add a record, unless there is one.

        Only a record that is damaged, or that follows a record which is no longer valid, is replaced.

        Returns:
            The valid record: this one, or that of another process.
        """
        key, data = (record.block, record.sub_attack), encode(record)
        path = self._record_path(*key)
        with self._explained():
            while True:
                there = self._load(*key)
                first = self._valid(there, *key)
                if first is not None and first.after == record.after:
                    return first
                if there is not None:
                    reason = "is damaged" if first is None else "follows a record that has been replaced"
                    warnings.warn(f"{path} {reason}. It is replaced.", stacklevel=2)
                    write_whole(path, data)
                    return record
                if create_whole(path, data):
                    return record

    def _load(self, block: int, sub_attack: int) -> bytes | None:
        with self._explained():
            try:
                with self._record_path(block, sub_attack).open("rb") as stream:
                    return b"" if os.fstat(stream.fileno()).st_size > MAX_BYTES else stream.read()
            except FileNotFoundError:
                return None

    def _valid(self, data: bytes | None, block: int, sub_attack: int) -> Record | None:
        record = None if data is None else decode(data)
        return record if record and (record.block, record.sub_attack) == (block, sub_attack) else None

    def _record_path(self, block: int, sub_attack: int) -> Path:
        return self.folder / f"block-{block:05}.sub-attack-{sub_attack}.record"

    def _claim_path(self, block: int) -> Path:
        return self.folder / f"block-{block:05}.claim"

    def _explained(self) -> AbstractContextManager[None]:
        return explained(self.folder, "a state folder")


State = EvaluationState | MemoryState


def _read_identity(path: Path) -> dict[str, Any] | None:
    """Content of an identity file; None if there is none, or it is incomplete."""
    try:
        with path.open("rb") as stream:
            content = parse_json(stream.read(_MAX_IDENTITY_BYTES))
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None
