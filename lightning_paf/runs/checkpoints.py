"""Checkpoint files of a training: written atomically, validated before use."""

import contextlib
import errno
import io
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn

from lightning_paf.runs.checkpoint_version import KEY, check_checkpoint_version, checkpoint_version
from lightning_paf.runs.identity import RUN
from lightning_paf.utils.files import checksum_error, sync_folder

_SUFFIX = ".ckpt"
_WEIGHTS_ONLY = "holds weights only"
_PLAIN = (bool, int, float, str, bytes, type(None), torch.Tensor)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Atomic writing of checkpoints: a reader finds the old file or the new one.

    A second file is written, flushed and renamed. Lightning moves a file from the system's temporary folder, which is a
    copy if that is another disk, and flushes nothing, so that the file can be empty after a power failure.

    Numpy numbers are saved as plain ones. Each file is loaded before it is renamed, so that a state that cannot be
    loaded ends the training at its first save.

    Attributes:
        last_saved: Name and optimiser steps of the last saved checkpoint.
        run_id: ID of the run, saved in each checkpoint; empty if unknown.
        check_owner: Called before files are changed; ends the process if another one has taken over the run folder.
    """

    last_saved: tuple[str, int] | None = None
    run_id: str = ""
    check_owner: Callable[[], None] = staticmethod(lambda: None)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint. After an error, the old file is unchanged.

        Raises:
            OSError: The disk is full or read-only.
            ValueError: The checkpoint holds an object that cannot be loaded with `weights_only`.
        """
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path, checkpoint = Path(path), with_plain_numbers(checkpoint)
        if self.run_id:
            checkpoint = {**checkpoint, KEY: {**checkpoint.get(KEY, checkpoint_version()), RUN: self.run_id}}
        partial = path.with_name(".unfinished")  # a fixed name: a killed process leaves one file at most
        self.check_owner()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.unlink(missing_ok=True)  # a suspended owner of the folder can still have it open
            with partial.open("wb") as stream:
                torch.save(checkpoint, stream)
                stream.flush()
                os.fsync(stream.fileno())
            _read(partial)
            self.check_owner()
            partial.replace(path)
            sync_folder(path.parent)
            self.last_saved = path.name, checkpoint.get("global_step", 0)
        except (OSError, RuntimeError) as error:  # torch turns errors of the stream into RuntimeError
            partial.unlink(missing_ok=True)
            raise OSError(
                f"{path} could not be written ({error}); older checkpoints are unchanged. "
                "Free disk space and resume with --ckpt_path auto."
            ) from error
        except (pickle.PickleError, AttributeError, TypeError) as error:
            partial.unlink(missing_ok=True)
            if found := _first_object(checkpoint, "checkpoint"):
                raise _not_plain(*found) from error
            raise


def check_checkpoint(name: str) -> None:
    """Check that a file is a checkpoint of a training, without executing its content.

    Raises:
        ValueError: The file is missing, unreadable, or another file.
    """
    path = Path(name)
    if not os.path.lexists(path):
        raise ValueError(f"--ckpt_path must be a checkpoint, got {name}, which does not exist. Check the path.")
    if path.is_dir():
        raise ValueError(
            f"--ckpt_path must be a file, got the folder {name}. Pass {path / 'checkpoints' / 'last.ckpt'}."
        )
    try:
        found, damage = _read(path), checksum_error(path)
    except Exception as error:  # a damaged file raises any exception
        found, damage = {}, _reason(path, error)
    if damage:
        raise ValueError(
            f"--ckpt_path must be a checkpoint of a training, but {name} {damage}. Objects are not unpickled because "
            "that can run any code. Pass a file that `fit` wrote: RUN/checkpoints/last.ckpt."
        )
    keys = list(found) if isinstance(found, dict) else [type(found).__name__]
    if not {"state_dict", "pytorch-lightning_version"} <= set(keys):
        raise ValueError(
            f"--ckpt_path must be a checkpoint with state_dict and pytorch-lightning_version, but {name} holds "
            f"{', '.join(map(str, keys))}. Pass a file that `fit` wrote: RUN/checkpoints/last.ckpt."
        )
    check_checkpoint_version(found, name)


def checkpoint_files(folders: Iterable[Path]) -> list[Path]:
    """List the checkpoint files of some folders, readable or not.

    Args:
        folders: Folders of `*.ckpt`. Missing folders are skipped; a folder that cannot be listed is in the result.
    """
    found: set[Path] = set()
    for folder in folders:
        try:
            found |= {path for path in folder.iterdir() if path.suffix == _SUFFIX}
        except OSError:
            found |= {folder} if os.path.lexists(folder) else set()
    return sorted(found)


def newest_checkpoint(folders: Iterable[Path], run_id: str | None = None) -> Path | None:
    """Find the newest checkpoint, by optimiser steps, finished epochs and time.

    Files of weights only are skipped silently, damaged ones and those of other runs with a warning.

    Args:
        folders: Folders of `*.ckpt`.
        run_id: ID of the run; None accepts checkpoints of any run.

    Returns:
        The file, or None without any checkpoint file.

    Raises:
        ValueError: A file cannot be read, so that the newest is unknown; no file can resume a training; or the newest
            was written by a newer version of the package.
    """
    found, skipped, unreadable = list[tuple[int, int, int, Path]](), dict[Path, str](), dict[Path, str]()
    for path in checkpoint_files(folders):
        try:
            content = _read(path)
            progress = _progress(content)
            if progress is None:
                skipped[path] = _WEIGHTS_ONLY
            elif run_id and _run_id(content) not in (run_id, None):
                skipped[path] = "belongs to another run"
            else:
                found.append((*progress, path.stat().st_mtime_ns, path))
        except Exception as error:  # a damaged file raises any exception
            if os.path.lexists(path):  # not removed by a running training
                (unreadable if _reading_error(path, error) else skipped)[path] = _reason(path, error)
    if unreadable:
        raise _refused(unreadable)
    for *_, path in sorted(found, reverse=True):
        try:
            damage = checksum_error(path)
        except OSError as error:
            raise _refused({path: _reason(path, error)}) from error
        if damage:
            skipped[path] = damage
            continue
        for other, reason in skipped.items():
            if reason != _WEIGHTS_ONLY:
                rank_zero_warn(f"{other} {reason} and is skipped; {path} is used.")
        check_checkpoint_version(_read(path), path)
        return path
    if skipped:
        raise _refused(skipped)
    return None


def step_of(path: str | Path) -> int:
    """Return the number of optimiser steps before a checkpoint."""
    step: int = _read(Path(path))["global_step"]
    return step


def position_of(path: str | Path) -> tuple[int, int]:
    """Return optimiser steps and finished epochs before a checkpoint.

    Raises:
        ValueError: The file holds weights only.
    """
    position = _progress(_read(Path(path)))
    if position is None:
        raise ValueError(
            f"--ckpt_path must be a checkpoint to resume from, but {path} {_WEIGHTS_ONLY}. Pass --model.init "
            "instead to start a new training with them."
        )
    return position


def run_id_of(path: str | Path) -> str | None:
    """Return the ID of the run that wrote a checkpoint; None if unknown."""
    return _run_id(_read(Path(path)))


def with_plain_numbers(value: Any) -> Any:
    """Replace numpy numbers in a checkpoint by Python numbers.

    A value without numpy numbers is returned unchanged.
    """
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (dict, OrderedDict):
        pairs = [(with_plain_numbers(key), with_plain_numbers(item)) for key, item in value.items()]
        same = all(a is c and b is d for (a, b), (c, d) in zip(pairs, value.items(), strict=True))
        return value if same else type(value)(pairs)
    if type(value) in (list, tuple):
        items = [with_plain_numbers(item) for item in value]
        return value if all(a is b for a, b in zip(items, value, strict=True)) else type(value)(items)
    return value


def _not_plain(where: str, found: Any) -> ValueError:
    kind = f"{type(found).__module__}.{type(found).__qualname__}".removeprefix("builtins.")
    return ValueError(
        f"A checkpoint must hold tensors and plain values, got {kind} at {where}, which could not be loaded to resume. "
        "Return a plain value, such as str(...), float(...) or a tensor, from the state_dict or on_save_checkpoint "
        "that adds it."
    )


def _first_object(value: Any, where: str) -> tuple[str, Any] | None:
    """Return location and value of the first object that `weights_only` refuses."""
    items: Iterable[tuple[str, Any]] = ()
    if isinstance(value, Mapping):
        items = ((f"{where}[{key!r}]", part) for key, item in value.items() for part in (key, item))
    elif isinstance(value, list | tuple | set):
        items = ((f"{where}[{i}]", item) for i, item in enumerate(value))
    elif type(value) in _PLAIN:
        return None
    inside = next((found for inner, item in items if (found := _first_object(item, inner))), None)
    if inside or type(value) in (dict, list, tuple, set):
        return inside
    copy = io.BytesIO()
    try:
        torch.save(value, copy)
        copy.seek(0)
        torch.load(copy, weights_only=True)
    except Exception:  # pickling runs code of the object
        return where, value
    return None


def _refused(files: Mapping[Path, str]) -> ValueError:
    listed = "; ".join(f"{path} {reason}" for path, reason in sorted(files.items()))
    return ValueError(
        f"--ckpt_path auto must find a checkpoint to resume from, but {listed}. Repair or remove these files and "
        "repeat the command, or pass another --run. To start another run with weights only, pass --run OTHER "
        "--model.init FILE."
    )


def _reason(path: Path, error: Exception) -> str:
    """Explain why a file could not be loaded; the text follows its name."""
    if reading := _reading_error(path, error):
        return f"cannot be read ({reading.strerror or reading})"
    with contextlib.suppress(Exception):  # a truncated file
        if names := torch.serialization.get_unsafe_globals_in_checkpoint(path):
            return f"holds objects that are not plain values ({', '.join(sorted(names))})"
    return f"is damaged ({f'{type(error).__name__}: {error}'.splitlines()[0]})"


def _reading_error(path: Path, error: Exception) -> OSError | None:
    """Return the error of the file system behind an error of torch."""
    if isinstance(error, OSError) and error.errno != errno.EINVAL:  # an invalid offset in a damaged file
        return error
    try:
        if path.suffix != _SUFFIX:  # a folder that could not be listed
            next(path.iterdir(), None)
        with path.open("rb") as stream:
            while stream.read(2**20):
                pass
    except OSError as reading:
        return reading
    return None


def _read(path: Path) -> dict[str, Any]:
    """Load a checkpoint; tensors stay on disk."""
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return content


def _run_id(checkpoint: Mapping[str, Any]) -> str | None:
    written = checkpoint.get(KEY)
    return written.get(RUN) if isinstance(written, dict) else None


def _progress(checkpoint: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return optimiser steps and finished epochs; None for weights only."""
    if "state_dict" in checkpoint and "optimizer_states" not in checkpoint:
        return None
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
    return int(checkpoint["global_step"]), int(epochs["processed"])
