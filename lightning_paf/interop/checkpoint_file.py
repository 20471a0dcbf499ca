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
        left_out: Keys of anything else (the state of a training objective, say).
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
        normalize: Whether the network expects normalised images, if the file records it (checkpoints of `fit` do).
        statistics: Of that normalisation, if the file records them apart from the weights (safetensors of `export`).
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
            kind, other = ("averaged", "not averaged") if which == "ema" else ("unaveraged", "averaged")
            held = ", ".join(f"{item.name or 'one state dict'} ({other})" for item in self.sets)
            raise ValueError(
                f"--{which} asks for {kind} weights, but {self.path} holds only {held}. Leave --{which} out."
            )
        return max(wanted, key=lambda item: item.averaged)


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
    except Exception as error:  # a damaged file fails in many ways
        lines = [line.strip() for line in str(error).splitlines()] or [""]
        reason = next((line for line in lines if "GLOBAL" in line or "Unsupported" in line), lines[0])[:160]
        hint = (
            f"is damaged, or torch.save did not write it ({type(error).__name__}: {reason}). "
            "Compare its size with the original's, or download it again."
        )
        if isinstance(error, pickle.UnpicklingError):
            hint = (
                "is damaged or holds other things than tensors and plain values, which are not unpickled because "
                "that can run any code. If you trust its author, save the weights alone where you trained: "
                f"torch.save(torch.load(FILE, weights_only=False)['state_dict'], 'plain.pt'). ({reason})"
            )
        raise ValueError(f"{path} {hint}") from error


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
    statistics = None
    if {"mean", "std"} <= notes.keys():  # as `export` notes them
        try:
            statistics = Statistics(*(tuple(map(float, json.loads(notes[name]))) for name in ("mean", "std")))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"The normalisation in the metadata of {path} must be lists of numbers, got mean {notes['mean']} and "
                f"std {notes['std']}. Remove them, and pass --mean and --std."
            ) from error
    return CheckpointFile(path, (WeightSet("", False, tensors),), statistics=statistics)


def _weight_sets(content: Mapping[str, Any]) -> tuple[WeightSet, ...]:
    """All state dicts of a loaded file, in the order of `WRAPPERS`."""
    if _is_state_dict(content):
        return (_network_of("", False, content, ()),)
    roots = LIGHTNING_ROOTS if LIGHTNING_MARK in content else ()
    found: dict[str, WeightSet] = {}
    for key, averaged, beside in WRAPPERS:
        meant = beside is None or _is_state_dict(content.get(beside))
        if meant and key not in found and _is_state_dict(content.get(key)):
            found[key] = _network_of(key, averaged, content[key], roots)
    return tuple(found.values())


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(item, Tensor) for item in value.values())


def _network_of(name: str, averaged: bool, tensors: Mapping[str, Tensor], roots: tuple[str, ...]) -> WeightSet:
    """Separate a network from what a LightningModule or an averaging keeps next to it."""
    root = next((root for root in roots if any(key.startswith(root) for key in tensors)), "")
    inside = {key: value for key, value in tensors.items() if key.startswith(root) and key not in BOOKKEEPING}
    return WeightSet(name, averaged, inside, tuple(key for key in tensors if key not in inside))
