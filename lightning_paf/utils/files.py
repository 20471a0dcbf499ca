"""Atomic writes, and file system errors with a hint."""

import contextlib
import csv
import errno
import io
import json
import os
import uuid
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_NOT_ALLOWED = {errno.EROFS, errno.EACCES, errno.EPERM}
_NO_FOLDER = {errno.ENOTDIR, errno.EEXIST, errno.EISDIR}


def write_whole(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Write a file atomically and durably, also in case of a crash.

    The content is written to `PATH.HEX.partial` in the same folder, synchronised to the disk, and renamed. A killed
    process can leave this temporary file behind, but never a part of the final one.

    Args:
        path: File to write.
        content: Its bytes, or an iterable of parts that are never in memory together.

    Raises:
        OSError: The file system refuses; the temporary file is removed.
    """
    with _partial(path, content) as partial:
        partial.replace(path)
    sync_folder(path.parent)


def npz_bytes(**arrays: Any) -> bytes:
    """Return the content of an npz file without compression, for memory mapping."""
    import numpy as np

    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV with a column for every key; None becomes an empty field."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def create_whole(path: Path, content: bytes) -> bool:
    """Write a file unless it exists; of concurrent processes, one succeeds.

    The write is atomic where the file system has hard links. Elsewhere, readers can see a part of the file.

    Returns:
        Whether this process created the file.

    Raises:
        OSError: The file system refuses.
    """
    with _partial(path, content) as partial:
        try:
            os.link(partial, path)
        except (FileExistsError, FileNotFoundError):  # the latter: another process removed the temporary file
            return False
        except OSError:
            return _create_in_place(path, content)
    sync_folder(path.parent)
    return True


@contextlib.contextmanager
def explained(path: Path, use: str) -> Iterator[None]:
    """Convert file system errors to a `ValueError` with a hint.

    Args:
        path: File or folder that is read or written.
        use: Its purpose in the message, such as `a run folder`.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"{path} cannot be used as {use}: {reason}. {_hint(error.errno)}") from error


def parse_json(text: str | bytes) -> Any:
    """Parse JSON of any origin.

    Raises:
        ValueError: Not JSON, nested too deeply, or an integer that is too large for a float.
    """
    try:
        return json.loads(text, parse_int=_integer)
    except (RecursionError, OverflowError) as error:
        raise ValueError(f"the JSON must have few levels and finite numbers, got: {error}") from error


def checksum_error(path: Path) -> str:
    """Describe a checksum error in a file of `torch.save`; empty if there is none.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as stream:
        if not zipfile.is_zipfile(stream):
            return ""
        with zipfile.ZipFile(stream) as archive:
            damaged = archive.testzip()
    return f"is damaged (checksum of {damaged})" if damaged else ""


@contextlib.contextmanager
def _partial(path: Path, content: bytes | Iterable[bytes]) -> Iterator[Path]:
    """Temporary file with the content, synchronised to the disk.

    It is removed on exit unless it was renamed.
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with partial.open("xb") as stream:
            stream.writelines([content] if isinstance(content, bytes) else content)
            stream.flush()
            os.fsync(stream.fileno())
        yield partial
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def _create_in_place(path: Path, content: bytes) -> bool:
    try:
        with path.open("xb") as stream:
            stream.write(content)
    except FileExistsError:
        return False
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def _integer(text: str) -> int:
    number = int(text)
    float(1000 * number)
    return number


def _hint(code: int | None) -> str:
    if code in _NO_SPACE:
        return "Free some space and run the same command again; everything recorded so far stays valid."
    if code in _NOT_ALLOWED:
        return "Pass a folder that you may write to, or change its permissions and run the same command again."
    if code in _NO_FOLDER:
        return "Pass the path of a folder; it is created if it does not exist."
    return "Run the same command again, or pass another folder; everything recorded so far stays valid."


def sync_folder(folder: Path) -> None:
    """Synchronise the new name to the disk, where the system can open folders."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
