"""Reader of checkpoints of any family, without executing code in them."""

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_paf.interop.download import weight_file
from lightning_paf.interop.families import AVERAGED, AVERAGED_NEXT_TO, BOOKKEEPING, LIGHTNING_MARK, LIGHTNING_ROOTS, RAW
from lightning_paf.interop.normalized_net import Statistics

Which = Literal["ema", "raw"]

_MOST_LEVELS, _MOST_CLASSES = 5, 50
"""Most nested levels of state dicts, and most unknown classes of a file.

A file can contain itself; unknown classes become placeholders.
"""
_FOREIGN = {
    b"<": ("a web page", "Download it again and check its content"),
    b"version https://git-lfs": ("a Git LFS pointer", "Download the file itself: git lfs pull"),
    b"\x93NUMPY": ("a NumPy array", "Save a state dict: torch.save({KEY: torch.from_numpy(array), ...}, FILE)"),
    b"\x89HDF": ("an HDF5 file", "Save a state dict with torch.save"),
}
"""Kinds of other files, by their first bytes, and remedies."""
_TRUSTED = (
    "They are not unpickled because that can run any code. If you trust its author, save the weights alone: "
    "torch.save(torch.load(FILE, weights_only=False)['state_dict'], 'plain.pt')."
)


@dataclass(frozen=True)
class WeightSet:
    """One state dict of a file.

    Attributes:
        name: Key of the entry; empty if the file is a state dict itself.
        averaged: Whether it is an average over the training.
        tensors: Weights and buffers of the network, as in the file.
        left_out: Keys of other tensors, such as those of a training objective.
        rank: Preference among the usual names, 0 first; None for another name.
    """

    name: str
    averaged: bool
    tensors: dict[str, Tensor]
    left_out: tuple[str, ...] = ()
    rank: int | None = 0


@dataclass(frozen=True)
class CheckpointFile:
    """Content of a checkpoint file.

    Attributes:
        path: Path of the file.
        sets: State dicts, at least one.
        normalize: Whether the network expects normalised images; None unless recorded, as by `fit`.
        statistics: Mean and standard deviation for it; None unless recorded next to the weights, as by `export`.
        evidence: Entry of the file for a normalisation with unknown statistics, such as `normalize_input: True`.
    """

    path: Path
    sets: tuple[WeightSet, ...]
    normalize: bool | None = None
    statistics: Statistics | None = None
    evidence: str | None = None

    def choose(self, which: Which | None = None, entry: str | None = None) -> WeightSet:
        """Return the averaged weights, or the others if there are none.

        Args:
            which: Require averaged weights (`ema`) or those that are not (`raw`).
            entry: Name of the state dict, which overrides `which`.

        Raises:
            ValueError: There are no weights of the required kind or name, or several without a usual name.
        """
        names = ", ".join(item.name or "one state dict" for item in self.sets)
        if entry is not None:
            named = next((item for item in self.sets if item.name == entry), None)
            if named is None:
                raise ValueError(f"--entry must be a state dict of {self.path} ({names}), got {entry}.")
            return named
        found = [item for item in self.sets if which is None or item.averaged == (which == "ema")]
        if not found:
            kind, other = ("averaged", "not averaged") if which == "ema" else ("unaveraged", "averaged")
            held = ", ".join(f"{item.name or 'one state dict'} ({other})" for item in self.sets)
            raise ValueError(f"--{which} requires {kind} weights, got {self.path} with {held} only. Omit --{which}.")
        best = [item for item in found if item.averaged] or found
        usual = [item for item in best if item.rank is not None]
        if not usual and len(best) > 1:
            raise ValueError(
                f"A checkpoint must hold one state dict of the network, got {names} in {self.path}. "
                f"Pass --entry with one of them."
            )
        return min(usual, key=lambda item: item.rank or 0) if usual else best[0]


def read_checkpoint(source: str | Path, sha256: str | None = None) -> CheckpointFile:
    """Read a checkpoint without executing code in it.

    It is a .safetensors file, or a file of torch.save. Objects in it other than tensors and plain values become inert
    placeholders.

    Args:
        source: Path, URL or `hf://OWNER/NAME`, see `weight_file`.
        sha256: Expected SHA-256 of the file.

    Raises:
        ValueError: There is no such file; it is damaged or of another kind, or holds no state dict; or an error of
            `weight_file`.
    """
    path = weight_file(source, sha256)
    if not path.is_file():
        raise ValueError(f"There is no checkpoint file {path}. Check the path.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    content = _load(path)
    sets = _weight_sets(content) if isinstance(content, Mapping) else ()
    if not sets:
        held = ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(
            f"A checkpoint must be a state dict or hold one, got {path} with {held}. Save the state dict alone: "
            "torch.save(net.state_dict(), FILE). Objects are not unpickled because that can run any code."
        )
    parameters = content.get("hyper_parameters")
    normalize = parameters.get("normalize") if isinstance(parameters, Mapping) else None
    if isinstance(normalize, bool):
        return CheckpointFile(path, sets, normalize)
    noted = dict(_normalisations(content))
    evidence = next((f"{key}: True" for key, value in noted.items() if value), None)
    return CheckpointFile(path, sets, False if noted and not evidence else None, evidence=evidence)


class _Placeholder:
    """Object of a file whose class is not imported."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Placeholder":
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _load(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    kind = next((kind for mark, kind in _FOREIGN.items() if start.startswith(mark)), None)
    if kind is None and zipfile.is_zipfile(path):
        kind = _kind_of_archive(zipfile.ZipFile(path).namelist())
    if kind is not None:
        raise ValueError(f"{path} is {kind[0]}, not a checkpoint. {kind[1]}.")
    unknown = list[Any]()
    while True:
        try:
            with warnings.catch_warnings(), torch.serialization.safe_globals(unknown):
                warnings.filterwarnings("ignore", "Detected pickle protocol")
                return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file fails in many ways
            name = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
            if name is None or len(unknown) == _MOST_CLASSES or any(name[1] == known for _, known in unknown):
                raise _unreadable(path, error) from error
            unknown.append((type(name[1].rpartition(".")[2], (_Placeholder,), {}), name[1]))


def _kind_of_archive(names: list[str]) -> tuple[str, str] | None:
    """Return the kind of an archive that torch.save did not write, and a remedy."""
    if any(name.endswith("constants.pkl") for name in names):
        return "a TorchScript archive", "Save its weights: torch.save(torch.jit.load(FILE).state_dict(), 'plain.pt')"
    if names and all(name.endswith(".npy") for name in names):
        return "an archive of NumPy arrays", _FOREIGN[b"\x93NUMPY"][1]
    return None


def _unreadable(path: Path, error: Exception) -> ValueError:
    lines = [line.strip() for line in str(error).splitlines()] or [""]
    reason = next((line for line in lines if "GLOBAL" in line or "Unsupported" in line), lines[0])[:160]
    if isinstance(error, pickle.UnpicklingError):
        problem = f"is damaged or holds objects other than tensors and plain values. {_TRUSTED} ({reason})"
    else:
        problem = (
            f"is damaged, or torch.save did not write it ({type(error).__name__}: {reason}). Compare its size with the "
            "original's, or download it again."
        )
    return ValueError(f"{path} {problem}")


def _read_safetensors(path: Path) -> CheckpointFile:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # it has no __iter__
            notes = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file ({error}). Download or write it again.") from error
    if not tensors:
        raise ValueError(f"A checkpoint must hold tensors, got {path} without any. Pass another file.")
    # `safetensors.torch.save_model` writes a shared tensor once, and its other names to the metadata.
    tensors |= {alias: tensors[kept] for alias, kept in notes.items() if kept in tensors and alias not in tensors}
    statistics = None
    if {"mean", "std"} <= notes.keys():  # written by `export`
        try:
            statistics = Statistics(*(tuple(map(float, json.loads(notes[name]))) for name in ("mean", "std")))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"The normalisation in the metadata of {path} must be lists of numbers, got mean {notes['mean']} and "
                f"std {notes['std']}. Remove them, and pass --mean and --std."
            ) from error
    return CheckpointFile(path, (WeightSet("", False, tensors),), statistics=statistics)


def _weight_sets(content: Mapping[str, Any]) -> tuple[WeightSet, ...]:
    """All state dicts of a loaded file."""
    roots = LIGHTNING_ROOTS if LIGHTNING_MARK in content else ()
    found = dict(_state_dicts(content, "", 0))
    sets = []
    for name, tensors in found.items():
        parent, _, last = name.rpartition(".")
        pair = AVERAGED_NEXT_TO.get(last)
        averaged = pair is not None and f"{parent}.{pair}".lstrip(".") in found
        rank = 0 if averaged or not name else RAW.index(last) if last in RAW else None
        sets.append(_network_weights(name, averaged or AVERAGED.search(last) is not None, tensors, roots, rank))
    return tuple(sets)


def _state_dicts(value: Any, name: str, level: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Find the state dicts below a value, without those of optimizers."""
    if _is_state_dict(value):
        yield name, value
    elif isinstance(value, Mapping) and "param_groups" not in value and level < _MOST_LEVELS:
        for key, inner in value.items():
            if isinstance(key, str):
                yield from _state_dicts(inner, f"{name}.{key}" if name else key, level + 1)


def _is_state_dict(value: Any) -> bool:
    """Return whether half of the values are tensors, and none is a collection."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        return False
    tensors = sum(isinstance(item, Tensor) for item in value.values())
    return 2 * tensors >= len(value) > 0 and not any(isinstance(item, Mapping | list) for item in value.values())


def _normalisations(value: Any, level: int = 0) -> Iterator[tuple[str, bool]]:
    """Find the entries about normalisation in the options that a file records."""
    value = value.state if isinstance(value, _Placeholder) else value
    if isinstance(value, Mapping) and level < _MOST_LEVELS:
        for key, inner in value.items():
            if isinstance(inner, bool) and re.search("normali[sz]", str(key), re.IGNORECASE):
                yield str(key), inner
            yield from _normalisations(inner, level + 1)


def _network_weights(
    name: str, averaged: bool, tensors: Mapping[str, Any], roots: tuple[str, ...], rank: int | None
) -> WeightSet:
    """Separate the network in a LightningModule or AveragedModel from other values."""
    root = next((root for root in roots if any(key.startswith(root) for key in tensors)), "")
    inside = {
        key: value
        for key, value in tensors.items()
        if key.startswith(root) and key not in BOOKKEEPING and isinstance(value, Tensor)
    }
    return WeightSet(name, averaged, inside, tuple(key for key in tensors if key not in inside), rank)
