"""The records of one evaluation: on disk, to be resumed, shared out and re-checked; or in memory."""

import contextlib
import hashlib
import json
import os
import re
import time
import uuid
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from lightning_paf.evaluation.identity import Header, check_same, content_fingerprint
from lightning_paf.evaluation.record import LARGEST, DamagedRecord, Record, decode, encode
from lightning_paf.runs.claim import Watch, read_holder, take
from lightning_paf.utils.files import create_whole, explained, write_whole

_HEADER = "header.json"
_RECORD = re.compile(r"block-(?P<block>\d{5,})\.stage-(?P<stage>\d+)\.record")
_LARGEST_HEADER = 2**24
_TRIES = 5
_PAUSE = 0.2
"""Seconds between two looks at a header that is not whole: another process may be writing it."""

Key = tuple[int, int]
"""Block and stage."""


class Records(ABC):
    """What every ledger does with records; where they lie is up to the subclass.

    A record is made once and never changed: of two for the same place, the first counts. Only if it is damaged, or
    follows a record that counts no longer, the next takes its place.
    """

    def open(self, header: Header) -> None:
        """Begin the evaluation, or continue it.

        Raises:
            ValueError: The ledger is about something else; every difference is named. Or it cannot be written.
        """
        self._agree(header.content())

    @abstractmethod
    def recorded(self) -> list[Key]:
        """Blocks and stages of all records, in order; damaged ones count."""

    @abstractmethod
    def lease(self, block: int) -> AbstractContextManager[object] | None:
        """The right to work on a block for the length of a `with`; None if another process has it."""

    @abstractmethod
    def holder(self, block: int) -> str:
        """Who works on a block, for a message; empty if nobody does."""

    def read(self, block: int, stage: int) -> Record | None:
        """A record; None if it is missing or damaged."""
        return _record_in(self._load(block, stage), block, stage)

    def write(self, record: Record) -> Record:
        """Add a record.

        Returns:
            The one that counts: this one, or an equal one that was there already.

        Raises:
            ValueError: The folder is full or may not be written to; the record is too large.
        """
        there = self._load(record.block, record.stage)
        first = _record_in(there, record.block, record.stage)
        if first is not None and first.after == record.after:
            return first
        data = encode(record)
        self._store(record.block, record.stage, data, instead=there is not None)
        return decode(data)

    def digest(self, blocks: int | None = None) -> str:
        """Fingerprint of all records, in hexadecimal digits; who made them, and when, is left out.

        The header has its part, for the first record of each block names it.

        Args:
            blocks: Only the first so many blocks; by default all.
        """
        digest = hashlib.sha256()
        for block, stage in self.recorded():
            record = self.read(block, stage)
            if record is not None and (blocks is None or block < blocks):
                digest.update(f"{block} {stage} {record.fingerprint}\n".encode())
        return digest.hexdigest()

    @abstractmethod
    def _agree(self, content: Mapping[str, Any]) -> None:
        """Keep the header's content, or compare it with the one kept."""

    @abstractmethod
    def _load(self, block: int, stage: int) -> bytes | None:
        """The bytes of a record, if there is one; none of a file that is larger than any record."""

    @abstractmethod
    def _store(self, block: int, stage: int, data: bytes, instead: bool) -> None:
        """Keep the bytes of a record, and say so if it is instead of one that does not count."""


class Ledger(Records):
    """Records in a folder, which several processes on several machines may share.

    One file a record (`block-00003.stage-1.record`), one for the header, one for each block at work
    (`block-00003.lease`). No file is ever changed: each comes into being whole, under its final name, and carries a
    hash. A file that is not whole all the same (a power cut, a folder without atomic renaming) is moved aside with a
    warning and made again.

    Args:
        folder: Made if it does not exist.
        timeout: Seconds without a sign of life after which another machine's work on a block is taken over. What a
            dead process on this machine (Linux) held is taken over at once.

    Raises:
        ValueError: The time-out is not positive. In use: the folder cannot be written.
    """

    def __init__(self, folder: str | Path, timeout: float = 120.0) -> None:
        if not timeout > 0:
            raise ValueError(f"timeout={timeout} would take every block from its worker. Give seconds, such as 120.")
        self.folder = Path(folder)
        self.timeout = timeout
        self._watch = Watch()

    def __str__(self) -> str:
        return f"ledger {self.folder}"

    def recorded(self) -> list[Key]:
        """Blocks and stages of all records, in order; damaged ones count."""
        with self._explained():
            matches = [_RECORD.fullmatch(path.name) for path in self.folder.iterdir()]
        return sorted((int(match["block"]), int(match["stage"])) for match in matches if match)

    def lease(self, block: int) -> AbstractContextManager[object] | None:
        """The right to work on a block for the length of a `with`; None if another process has it."""
        with self._explained():
            lease = take(self._lease_path(block), self.timeout, self._watch)
        if lease is not None:
            for partial in self.folder.glob(f"block-{block:05}.*.partial"):  # of a process that was killed
                with contextlib.suppress(OSError):
                    partial.unlink()
        return lease

    def holder(self, block: int) -> str:
        """Who works on a block, for a message; empty if nobody does."""
        path = self._lease_path(block)
        holder = read_holder(path)
        if holder is None:
            return ""
        return f"{holder} (no sign of life for {self._watch.silence(path):.0f} s)"

    def _agree(self, content: Mapping[str, Any]) -> None:
        with self._explained():
            self.folder.mkdir(parents=True, exist_ok=True)
            there = self._read_header()
            for _ in range(_TRIES):
                if there is None:
                    self._write_header(content)
                    there = self._read_header()
        check_same(content, there or {}, str(self))

    def _read_header(self) -> dict[str, Any] | None:
        """The header's content, once it is whole; None if there is none, or only a part of one."""
        for _ in range(_TRIES):
            try:
                return _header_in(self.folder / _HEADER)
            except FileNotFoundError:
                return None
            except (ValueError, TypeError, KeyError):
                time.sleep(_PAUSE)
        return None

    def _write_header(self, content: Mapping[str, Any]) -> None:
        """Write a header where there is none, or a damaged one. Of several processes that do so, one wins."""
        path = self.folder / _HEADER
        fingerprint = content_fingerprint(content)
        data = json.dumps({"header": content, "sha256": fingerprint}, indent=2).encode() + b"\n"
        if not create_whole(path, data) and self._read_header() is None:
            self._check_records_are_of(fingerprint)
            _move_damaged_header_aside(path)
            create_whole(path, data)

    def _check_records_are_of(self, fingerprint: str) -> None:
        for block, stage in self.recorded():
            record = self.read(block, stage)
            if record is not None and stage == 0 and record.after != fingerprint:
                raise ValueError(
                    f"{self} has a damaged {_HEADER}, and records of another evaluation than this one. Give another "
                    "folder for the ledger, or the same checkpoint, data, attack and settings as before."
                )

    def _load(self, block: int, stage: int) -> bytes | None:
        path = self._record_path(block, stage)
        with self._explained():
            try:
                with path.open("rb") as stream:
                    return b"" if os.fstat(stream.fileno()).st_size > LARGEST else stream.read()
            except FileNotFoundError:
                return None

    def _store(self, block: int, stage: int, data: bytes, instead: bool) -> None:
        path = self._record_path(block, stage)
        with self._explained():
            if instead:
                _move_aside(path, "it is damaged, or follows a damaged record, and is made again")
            try:
                write_whole(path, data)
            except FileNotFoundError:  # swept away by a process that took this block over
                write_whole(path, data)

    def _record_path(self, block: int, stage: int) -> Path:
        return self.folder / f"block-{block:05}.stage-{stage}.record"

    def _lease_path(self, block: int) -> Path:
        return self.folder / f"block-{block:05}.lease"

    def _explained(self) -> AbstractContextManager[None]:
        return explained(self.folder, "a ledger")


class MemoryLedger(Records):
    """Records in memory, for an evaluation that nobody resumes or shares."""

    def __init__(self) -> None:
        self._content: Mapping[str, Any] | None = None
        self._records: dict[Key, bytes] = {}

    def __str__(self) -> str:
        return "ledger in memory"

    def recorded(self) -> list[Key]:
        """Blocks and stages of all records, in order."""
        return sorted(self._records)

    def lease(self, block: int) -> AbstractContextManager[object] | None:
        """The right to work on a block: always given."""
        return contextlib.nullcontext()

    def holder(self, block: int) -> str:
        """Nobody else."""
        return ""

    def _agree(self, content: Mapping[str, Any]) -> None:
        if self._content is None:
            self._content = content
        check_same(content, self._content, str(self))

    def _load(self, block: int, stage: int) -> bytes | None:
        return self._records.get((block, stage))

    def _store(self, block: int, stage: int, data: bytes, instead: bool) -> None:
        self._records[block, stage] = data


def _record_in(data: bytes | None, block: int, stage: int) -> Record | None:
    """The record of these bytes, if it is whole and where it belongs."""
    if data is None:
        return None
    try:
        record = decode(data)
    except DamagedRecord:
        return None
    return record if (record.block, record.stage) == (block, stage) else None


def _header_in(path: Path) -> dict[str, Any]:
    """The content of a header.

    Raises:
        ValueError, TypeError, KeyError: The file is not whole.
        OSError: As the file system says.
    """
    with path.open("rb") as stream:
        kept = json.loads(stream.read(_LARGEST_HEADER))
    content: dict[str, Any] = kept["header"]
    if kept["sha256"] != content_fingerprint(content):
        raise ValueError("its content is not that of its hash")
    return content


def _move_damaged_header_aside(path: Path) -> None:
    """Move a header aside; put it back if another process has mended it meanwhile."""
    aside = _aside(path)
    try:
        path.rename(aside)
        _header_in(aside)
    except FileNotFoundError:  # another process was faster
        return
    except (ValueError, TypeError, KeyError):
        _tell(path, f"it is damaged and is written again. It is kept as {aside.name}")
    else:
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
        aside.unlink(missing_ok=True)


def _move_aside(path: Path, why: str) -> None:
    aside = _aside(path)
    try:
        path.rename(aside)
    except OSError:  # then it is overwritten
        _tell(path, why)
    else:
        _tell(path, f"{why}. It is kept as {aside.name}")


def _tell(path: Path, why: str) -> None:
    warnings.warn(f"{path} does not count: {why}.", stacklevel=3)


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.aside")
