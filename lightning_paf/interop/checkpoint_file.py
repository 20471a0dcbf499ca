"""Reader of checkpoints of any family, without executing code in them."""

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
        name: Key of the entry; empty if the file is a state dict itself.
        averaged: Whether it is an average over the training.
        tensors: Weights and buffers of the network, as in the file.
        left_out: Keys of other tensors, such as those of a training objective.
    """

    name: str
    averaged: bool
    tensors: dict[str, Tensor]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckpointFile:
    """Content of a checkpoint file.

    Attributes:
        path: Path of the file.
        sets: State dicts, at least one; the preferred one of each kind is first.
        normalize: Whether the network expects normalised images; None unless recorded, as by `fit`.
        statistics: Mean and standard deviation for it; None unless recorded next to the weights, as by `export`.
    """

    path: Path
    sets: tuple[WeightSet, ...]
    normalize: bool | None = None
    statistics: Statistics | None = None

    def choose(self, which: Which | None = None) -> WeightSet:
        """Return the averaged weights, or the others if there are none.

        Args:
            which: Require averaged weights (`ema`) or those that are not (`raw`).

        Raises:
            ValueError: There are no weights of the required kind.
        """
        found = [item for item in self.sets if which is None or item.averaged == (which == "ema")]
        if not found:
            kind, other = ("averaged", "not averaged") if which == "ema" else ("unaveraged", "averaged")
            held = ", ".join(f"{item.name or 'one state dict'} ({other})" for item in self.sets)
            raise ValueError(f"--{which} requires {kind} weights, got {self.path} with {held} only. Omit --{which}.")
        return max(found, key=lambda item: item.averaged)


def read_checkpoint(path: Path) -> CheckpointFile:
    """Read a checkpoint without executing code in it.

    It is a .safetensors file, or a file of torch.save with tensors and plain values only.

    Raises:
        ValueError: There is no such file; it is damaged, holds other objects (unpickling them can run any code), or
            holds no state dict.
    """
    if not path.is_file():
        raise ValueError(f"There is no checkpoint file {path}. Check the path.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    content = _load(path)
    sets = _weight_sets(content) if isinstance(content, Mapping) else ()
    if not sets:
        held = ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else type(content).__name__
        known = ", ".join(dict.fromkeys(wrapper.key for wrapper in WRAPPERS))
        raise ValueError(
            f"A checkpoint must be a state dict or hold one under {known}, got {path} with {held}. Save the state dict "
            "alone: torch.save(net.state_dict(), FILE)."
        )
    parameters = content.get("hyper_parameters")
    normalize = parameters.get("normalize") if isinstance(parameters, Mapping) else None
    return CheckpointFile(path, sets, normalize if isinstance(normalize, bool) else None)


def _load(path: Path) -> Any:
    with path.open("rb") as file:
        if file.read(64).lstrip()[:1] == b"<":  # an error page of a download site, saved as the file
            raise ValueError(f"{path} is a web page, not a checkpoint. Download it again and check its content.")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in many ways
        lines = [line.strip() for line in str(error).splitlines()] or [""]
        reason = next((line for line in lines if "GLOBAL" in line or "Unsupported" in line), lines[0])[:160]
        problem = (
            f"is damaged, or torch.save did not write it ({type(error).__name__}: {reason}). Compare its size with the "
            "original's, or download it again."
        )
        if isinstance(error, pickle.UnpicklingError):
            problem = (
                "is damaged or holds objects other than tensors and plain values. They are not unpickled because that "
                "can run any code. If you trust its author, save the weights alone: "
                f"torch.save(torch.load(FILE, weights_only=False)['state_dict'], 'plain.pt'). ({reason})"
            )
        raise ValueError(f"{path} {problem}") from error


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
    """All state dicts of a loaded file, in the order of `WRAPPERS`."""
    if _is_state_dict(content):
        return (_network_weights("", False, content, ()),)
    roots = LIGHTNING_ROOTS if LIGHTNING_MARK in content else ()
    found: dict[str, WeightSet] = {}
    for key, averaged, requires in WRAPPERS:
        applies = requires is None or _is_state_dict(content.get(requires))
        if applies and key not in found and _is_state_dict(content.get(key)):
            found[key] = _network_weights(key, averaged, content[key], roots)
    return tuple(found.values())


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(item, Tensor) for item in value.values())


def _network_weights(name: str, averaged: bool, tensors: Mapping[str, Tensor], roots: tuple[str, ...]) -> WeightSet:
    """Separate the network in a LightningModule or AveragedModel from other tensors."""
    root = next((root for root in roots if any(key.startswith(root) for key in tensors)), "")
    inside = {key: value for key, value in tensors.items() if key.startswith(root) and key not in BOOKKEEPING}
    return WeightSet(name, averaged, inside, tuple(key for key in tensors if key not in inside))
