"""Files that are whole or absent, and errors of the file system in words that help."""

import contextlib
import errno
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_NOT_ALLOWED = {errno.EROFS, errno.EACCES, errno.EPERM}
_NO_FOLDER = {errno.ENOTDIR, errno.EEXIST, errno.EISDIR}


def write_whole(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Write a file so that others see all of it or none, also after a crash.

    The content goes to a second file beside it (`PATH.HEX.partial`), is forced to the disk, and takes the name in one
    step. What a killed process leaves behind is the second file, never half of the first.

    Args:
        path: File to write.
        content: Its bytes, or parts of them that need not be in memory together.

    Raises:
        OSError: As the file system says; the second file is gone then.
    """
    with _partial(path, content) as partial:
        partial.replace(path)
    sync_folder(path.parent)


def create_whole(path: Path, content: bytes) -> bool:
    """Write a file unless there is one; of several processes that do so at once, one succeeds.

    Where the file system has hard links, others see all of it or none, as with `write_whole`. Elsewhere they may see
    a part, and a crash may leave one.

    Returns:
        Whether this process made the file.

    Raises:
        OSError: As the file system says.
    """
    with _partial(path, content) as partial:
        try:
            os.link(partial, path)
        except (FileExistsError, FileNotFoundError):  # the latter: swept away by a process that was faster
            return False
        except OSError:
            return _create_in_place(path, content)
    sync_folder(path.parent)
    return True


@contextlib.contextmanager
def explained(path: Path, use: str) -> Iterator[None]:
    """Turn errors of the file system into a `ValueError` that says how to go on.

    Args:
        path: What is being read or written.
        use: What for, as in `a ledger`.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"{path} cannot serve as {use}: {reason}. {_repair(error.errno)}") from error


@contextlib.contextmanager
def _partial(path: Path, content: bytes | Iterable[bytes]) -> Iterator[Path]:
    """A second file with the content, on the disk; gone at the end, unless it has got another name."""
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


def _repair(code: int | None) -> str:
    if code in _NO_SPACE:
        return "Free some space and give the same command again; everything recorded so far stays valid."
    if code in _NOT_ALLOWED:
        return "Give a folder that you may write to, or change its permissions and give the same command again."
    if code in _NO_FOLDER:
        return "Give the path of a folder; it is made if it does not exist."
    return "Give the same command again, or another folder; everything recorded so far stays valid."


def sync_folder(folder: Path) -> None:
    """Force the new name to the disk, where folders can be opened for that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
