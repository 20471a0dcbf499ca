"""Checkpoint files of a training: written as a whole or not at all, and looked at before they are believed."""

import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn

from lightning_paf.stamp import check_stamp


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the file and renames: whoever looks at any time finds the old checkpoint or the new one.

    Lightning writes to the system's folder for temporary files and moves from there, which copies where that is another
    disk; and a file that was not flushed can be empty after a power failure.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write it, or leave what was there.

        Raises:
            OSError: The disk is full, or cannot be written to.
        """
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        begun = path.with_name(".unfinished")  # one name, so that a process that was killed leaves one file at most
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with begun.open("wb") as stream:
                torch.save(checkpoint, stream)
                stream.flush()
                os.fsync(stream.fileno())
            begun.replace(path)
            _flush_names(path.parent)
        except (OSError, RuntimeError) as error:  # torch turns errors of the stream into RuntimeError
            begun.unlink(missing_ok=True)
            raise OSError(
                f"{path} could not be written ({error}); checkpoints that were there are as they were. "
                "Make room, and continue with --ckpt_path auto."
            ) from error


def check_checkpoint(name: str) -> None:
    """Refuse what is no checkpoint of a training. Nothing in the file is executed.

    Args:
        name: A file.
    """
    if not Path(name).is_file():
        raise ValueError(f"--ckpt_path names a checkpoint, but there is no file {name}. Check the path.")
    try:
        found = _read(Path(name))
        found.keys()  # a file may hold a bare tensor
    except Exception as error:  # a damaged file fails in any way it likes
        raise ValueError(
            f"{name} is damaged, or holds other things than weights and plain values, which are not unpickled because "
            f"that can run any code ({type(error).__name__}). Pass a file that `fit` wrote: RUN/checkpoints/last.ckpt."
        ) from error
    if not {"state_dict", "pytorch-lightning_version"} <= set(found):
        raise ValueError(
            f"A checkpoint holds state_dict and what belongs to it, but {name} holds {', '.join(map(str, found))}. "
            "Pass a file that `fit` wrote: RUN/checkpoints/last.ckpt."
        )
    check_stamp(found, name)


def newest_checkpoint(folders: Iterable[Path]) -> Path | None:
    """Find the checkpoint with which a training has come farthest.

    By optimiser steps, then finished epochs, then time. Files that hold weights alone cannot continue a training; those
    that are torn or damaged are named in a warning.

    Args:
        folders: Where `*.ckpt` are.

    Returns:
        The file, or None where there is none.

    Raises:
        ValueError: It was written by a newer version of the package, which has to continue it.
    """
    found = []
    for path in sorted({path for folder in folders for path in folder.glob("*.ckpt")}):
        try:
            progress = _progress(_read(path))
            modified = path.stat().st_mtime_ns
        except Exception as error:  # a damaged file fails in any way it likes
            _warn_of(path, f"{type(error).__name__}: {error}".splitlines()[0])
            continue
        if progress is not None:
            found.append((*progress, modified, path))
    for *_, path in sorted(found, reverse=True):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is None:
            check_stamp(_read(path), path)
            return path
        _warn_of(path, f"checksum of {damaged}")
    return None


def step_of(path: str | Path) -> int:
    """Number of optimiser steps before a checkpoint."""
    step: int = _read(Path(path))["global_step"]
    return step


def _read(path: Path) -> dict[str, Any]:
    """The content; tensors stay on disk."""
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return content


def _progress(checkpoint: Mapping[str, Any]) -> tuple[int, int] | None:
    """Optimiser steps and finished epochs; None of weights alone."""
    if "state_dict" in checkpoint and "optimizer_states" not in checkpoint:
        return None
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
    return int(checkpoint["global_step"]), int(epochs["processed"])


def _warn_of(path: Path, why: str) -> None:
    rank_zero_warn(f"{path} is damaged ({why}) and is left out; the checkpoint before it is used, if there is one.")


def _flush_names(folder: Path) -> None:
    """Make a renaming last, where the system can (POSIX)."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
