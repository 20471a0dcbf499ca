"""Mapping of the keys of a file to those of a network."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from posixpath import commonpath
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_paf.interop.families import COUNTER, PREFIXES, RENAMINGS, UNUSED

MAX_NAMED = 8


class Row(NamedTuple):
    """One tensor of the network.

    Attributes:
        value: The tensor in the network.
        ours: Its keys in the network; several if layers share it.
        theirs: Its keys in the file; none for an optional tensor that the file lacks.
    """

    value: Tensor
    ours: list[str]
    theirs: list[str]


@dataclass(frozen=True)
class KeyMap:
    """Mapping of a file that fits the network.

    Attributes:
        renaming: Name of the renaming that was applied.
        rows: One for each tensor, in the order of the network.
        state: Complete state dict of the network, with its dtypes.
        root: Prefix of the network's keys in the file.
        left_out: Keys of the file for tensors that no implementation uses.
    """

    renaming: str
    rows: list[Row]
    state: dict[str, Tensor]
    root: str = ""
    left_out: tuple[str, ...] = ()


def map_keys(tensors: Mapping[str, Tensor], net: nn.Module) -> KeyMap:
    """Map the tensors of a file to those of a network.

    The prefix with which most keys are those of the network is stripped, with each of the renamings of the known
    families. The file can hold a shared tensor under all or some of its names.

    Args:
        tensors: State dict of the file, without a normalisation.
        net: The network, possibly on the meta device; not modified.

    Raises:
        ValueError: Missing or unexpected keys, other shapes, different values of a shared tensor, values that are not
            finite.
    """
    attempts = [(name, *_match(tensors, net, rules)) for name, rules in RENAMINGS.items()]
    misfits = [_misfits(tensors, rows) for *_, rows in attempts]
    best = min(range(len(attempts)), key=lambda i: sum(map(len, misfits[i].values())))
    if any(misfits[best].values()):
        raise ValueError(_difference(type(net).__name__, misfits[best]))
    renaming, root, rows = attempts[best]
    state: dict[str, Tensor] = {}
    for row in rows:
        _check_values(tensors, row)
        loaded = tensors[row.theirs[0]] if row.theirs else torch.zeros(row.value.shape)
        state |= dict.fromkeys(row.ours, loaded.reshape(row.value.shape).to(row.value.dtype))
    used = {key for row in rows for key in row.theirs}
    return KeyMap(renaming, rows, state, root, tuple(key for key in tensors if key not in used))


def is_named(key: str, patterns: Iterable[str]) -> bool:
    """Return whether a key, or its end after a dot, matches a shell pattern."""
    return any(fnmatchcase(key, pattern) or fnmatchcase(key, f"*.{pattern}") for pattern in patterns)


def stripped(keys: Iterable[str]) -> list[str]:
    """Remove the prefixes that all keys share, such as `module.0.`."""
    short = list(keys)
    while prefix := next((p for p in PREFIXES if short and all(key.startswith(p) for key in short)), ""):
        short = [key.removeprefix(prefix) for key in short]
    return short


def _match(tensors: Mapping[str, Tensor], net: nn.Module, rules: Mapping[str, str]) -> tuple[str, list[Row]]:
    own = net.state_dict(keep_vars=True)
    shorts = stripped(own)
    root = _root(tensors, set(shorts), rules)
    theirs = {_renamed(key.removeprefix(root), rules): key for key in tensors if key.startswith(root)}
    rows: dict[int, Row] = {}
    for (key, value), short in zip(own.items(), shorts, strict=True):
        row = rows.setdefault(id(value), Row(value, [], []))
        row.ours.append(key)
        row.theirs.extend([theirs[short]] if short in theirs else [])
    return root, list(rows.values())


def _root(keys: Iterable[str], own: Collection[str], rules: Mapping[str, str]) -> str:
    """Return the first prefix with which most keys are those of the network."""
    found = Counter[str]()
    for key in keys:
        parts = key.split(".")
        tails = [".".join(parts[start:]) for start in range(len(parts))]
        found.update(key.removesuffix(tail) for tail in tails if _renamed(tail, rules) in own)
    return found.most_common(1)[0][0] if found else ""


def _renamed(key: str, rules: Mapping[str, str]) -> str:
    for pattern, replacement in rules.items():
        key = re.sub(pattern, replacement, key)
    return key


def _misfits(tensors: Mapping[str, Tensor], rows: list[Row]) -> dict[str, list[str]]:
    """Keys that do not fit, by problem."""
    used = {key for row in rows for key in row.theirs}
    return {
        "missing in the file": [row.ours[0] for row in rows if not row.theirs and not row.ours[0].endswith(COUNTER)],
        "in the file only": [key for key in tensors if key not in used and not is_named(key, UNUSED)],
        "of another shape": [
            f"{key}: {tuple(tensors[key].shape)} instead of {tuple(row.value.shape)}"
            for row in rows
            for key in row.theirs
            if tensors[key].shape != row.value.shape and not tensors[key].numel() == row.value.numel() == 1
        ],
    }


def _difference(name: str, misfits: Mapping[str, list[str]]) -> str:
    """Format the error for a file that does not fit."""
    missing, unexpected, shapes = misfits.values()

    def parametric(keys: list[str]) -> bool:
        return bool(keys) and all(key.endswith((".alpha", ".beta")) for key in keys)

    hint = "Pass the --net, with its depth and width, that the weights were trained with."
    if parametric(unexpected) and not missing:
        hint = "The file has a parametric activation. Pass e.g. --activation configs/activation/pssilu.yaml."
    elif parametric(missing) and not unexpected:
        hint = "The file lacks this activation's parameters. Pass the --activation it was trained with, or none."
    elif unexpected and not missing and not shapes:
        shared = commonpath(key.replace(".", "/") for key in unexpected).replace("/", ".")
        pattern = f"{shared}.*" if shared and len(unexpected) > 1 else unexpected[0]
        hint = f"Pass --drop PATTERN, such as --drop '{pattern}', for tensors that the network does not use."
    elif not missing and not unexpected and len(shapes) <= 2:
        hint = "Pass the --dataset that the weights were trained on, for the number of classes and channels."
    lines = [f"  {len(keys)} {problem}: {some(keys)}" for problem, keys in misfits.items() if keys]
    return "\n".join([f"The weights do not fit {name}:", *lines, hint])


def _check_values(tensors: Mapping[str, Tensor], row: Row) -> None:
    """Refuse different values of a shared tensor, and values that are not finite."""
    values = [tensors[key] for key in row.theirs]
    if any(not torch.equal(values[0], value) for value in values[1:]):
        brief = [f"{value.item():.6g}" if value.numel() == 1 else f"tensor {tuple(value.shape)}" for value in values]
        found = [f"{key}={value}" for key, value in zip(row.theirs, brief, strict=True)]
        raise ValueError(
            f"The {len(row.ours)} layers that share {row.ours[0]} must have one value in the file, got {some(found)}. "
            "Pass --activation_scope module if every layer has its own."
        )
    if values and not torch.isfinite(values[0]).all():
        raise ValueError(f"Weights must be finite, got NaN or infinity in {row.theirs[0]}. Pass another checkpoint.")


def some(texts: Sequence[str]) -> str:
    """List the first texts."""
    return ", ".join(texts[:MAX_NAMED]) + (", ..." if len(texts) > MAX_NAMED else "")
