"""Read a checkpoint of any family without running anything in it."""

import json
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_paf.interop.families import BOOKKEEPING, LIGHTNING_MARK, LIGHTNING_ROOTS, WRAPPERS
from lightning_paf.interop.normalized_net import Statistics

Which = Literal["ema", "raw"]


@dataclass(frozen=True)
class WeightSet:
    """One state dict of a file.

    Attributes:
        name: The entry that it lies under; empty where the file is nothing else.
        averaged: Whether it is an average over the training.
        tensors: As in the file.
        left_out: Keys beside the network (the state of a training objective, say).
    """

    name: str
    averaged: bool
    tensors: dict[str, Tensor]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckpointFile:
    """What a file holds.

    Attributes:
        path: Where it is.
        sets: Its state dicts, at least one; the preferred one of each kind comes first.
        normalize: Whether the network expects normalised images, where the file says so (checkpoints of `fit` do).
        statistics: Of that normalisation, where the file says them apart from the weights (safetensors of `export`).
    """

    path: Path
    sets: tuple[WeightSet, ...]
    normalize: bool | None = None
    statistics: Statistics | None = None

    def choose(self, which: Which | None = None) -> WeightSet:
        """The averaged weights where there are some, otherwise the others.

        Args:
            which: Insist on the averaged (`ema`) or on the last ones (`raw`).

        Raises:
            ValueError: There are none of the kind.
        """
        wanted = [item for item in self.sets if which is None or item.averaged == (which == "ema")]
        if not wanted:
            kind = "averaged" if which == "ema" else "unaveraged"
            raise ValueError(
                f"--{which} asks for {kind} weights, but {self.path} holds only {self._names()}. Leave --{which} out."
            )
        return max(wanted, key=lambda item: item.averaged)

    def _names(self) -> str:
        return ", ".join(f"{item.name or 'one state dict'} ({_kind(item)})" for item in self.sets)


def _kind(item: WeightSet) -> str:
    return "averaged" if item.averaged else "not averaged"


def read_checkpoint(path: Path) -> CheckpointFile:
    """Read a .safetensors file, or anything that torch.save wrote and that holds only tensors and plain values.

    Raises:
        ValueError: There is no such file, it is damaged, it holds objects that only unpickling could make (which can
            run any code), or no state dict is in it.
    """
    if not path.is_file():
        raise ValueError(f"A checkpoint is a file, but there is none at {path}. Check the path.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    content = _load(path)
    sets = _weight_sets(content) if isinstance(content, Mapping) else ()
    if not sets:
        held = ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else type(content).__name__
        known = ", ".join(dict.fromkeys(wrapper.key for wrapper in WRAPPERS))
        raise ValueError(
            f"A checkpoint holds a state dict, as such or under one of {known}, but {path} holds {held}. "
            "Save the state dict alone: torch.save(net.state_dict(), FILE)."
        )
    parameters = content.get("hyper_parameters")
    normalize = parameters.get("normalize") if isinstance(parameters, Mapping) else None
    return CheckpointFile(path, sets, normalize if isinstance(normalize, bool) else None)


def _load(path: Path) -> Any:
    with path.open("rb") as file:
        if file.read(64).lstrip()[:1] == b"<":  # what a download site answers when its quota is used up
            raise ValueError(f"{path} is a web page and no checkpoint. Download it again, and look at what you get.")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # if it cannot be read, it is refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is damaged or holds other things than tensors and plain values, which are not unpickled because "
            "that can run any code. If you trust its author, save the weights alone where you trained: "
            f"torch.save(torch.load(FILE, weights_only=False)['state_dict'], 'plain.pt'). ({_reason(error)})"
        ) from error
    except Exception as error:  # a damaged file fails in any way it likes
        raise ValueError(
            f"{path} is damaged, or torch.save did not write it ({type(error).__name__}: {_reason(error)}). "
            "Compare its size with the original's, or download it again."
        ) from error


def _reason(error: Exception) -> str:
    """The line of a long message that names the object."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if "GLOBAL" in line or "Unsupported" in line), lines[0] if lines else "")[:160]


def _read_safetensors(path: Path) -> CheckpointFile:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # it has no __iter__
            notes = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file ({error}). Download or write it again.") from error
    if not tensors:
        raise ValueError(f"A checkpoint holds tensors, but {path} holds none. Pass another file.")
    # `safetensors.torch.save_model` keeps one of several names of a tensor, and notes which name stands for which.
    tensors |= {alias: tensors[kept] for alias, kept in notes.items() if kept in tensors and alias not in tensors}
    return CheckpointFile(path, (WeightSet("", False, tensors),), statistics=_noted_statistics(notes, path))


def _noted_statistics(notes: Mapping[str, str], path: Path) -> Statistics | None:
    """The normalisation that `export` notes in a file's metadata."""
    if not {"mean", "std"} <= notes.keys():
        return None
    try:
        return Statistics(*(tuple(map(float, json.loads(notes[name]))) for name in ("mean", "std")))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} notes a normalisation that is no list of numbers: mean {notes['mean']}, std {notes['std']}. "
            "Remove the note, and pass --mean and --std."
        ) from error


def _weight_sets(content: Mapping[str, Any]) -> tuple[WeightSet, ...]:
    """All state dicts of a loaded file, in the order of `WRAPPERS`."""
    if _is_state_dict(content):
        return (WeightSet("", False, *_network_of(content, lightning=False)),)
    found: dict[str, WeightSet] = {}
    for wrapper in WRAPPERS:
        held: Any = content.get(wrapper.key)
        meant = wrapper.beside is None or _is_state_dict(content.get(wrapper.beside))
        if meant and wrapper.key not in found and _is_state_dict(held):
            tensors, left_out = _network_of(held, LIGHTNING_MARK in content)
            found[wrapper.key] = WeightSet(wrapper.key, wrapper.averaged, tensors, left_out)
    return tuple(found.values())


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(item, Tensor) for item in value.values())


def _network_of(tensors: Mapping[str, Tensor], lightning: bool) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Separate a network from what a LightningModule or an averaging keeps beside it."""
    roots = LIGHTNING_ROOTS if lightning else ()
    root = next((root for root in roots if any(key.startswith(root) for key in tensors)), "")
    inside = {key: value for key, value in tensors.items() if key.startswith(root) and key not in BOOKKEEPING}
    return inside, tuple(key for key in tensors if key not in inside)
