"""Match the keys of a file with those of a network."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_paf.interop.families import COUNTER, PREFIXES, RENAMINGS, Renaming

MOST_NAMED = 8


@dataclass(frozen=True)
class Row:
    """One tensor of the network.

    Attributes:
        theirs: Its first key in the file; empty where the file lacks it and need not have it.
        ours: Its first key in the network.
        shape: Its shape.
        sites: Number of its keys in the network: more than 1 where layers share it.
    """

    theirs: str
    ours: str
    shape: tuple[int, ...]
    sites: int


@dataclass(frozen=True)
class KeyMap:
    """A file that fits.

    Attributes:
        renaming: Which renaming made it fit.
        rows: One for each tensor, in the order of the network.
        state: The whole state dict of the network, with its dtypes.
    """

    renaming: str
    rows: tuple[Row, ...]
    state: dict[str, Tensor]


def map_keys(tensors: Mapping[str, Tensor], net: nn.Module) -> KeyMap:
    """Find for every tensor of a network the one in the file.

    Prefixes that all keys share are stripped, repeatedly and only at the front, on both sides; then the renamings of
    the known families are tried. A tensor that several layers share may be in the file under each of its names or
    under some of them. Nothing is written into `net`, which may be on the meta device.

    Args:
        tensors: State dict of the file, without a normalisation.
        net: The network.

    Raises:
        ValueError: Missing or unexpected keys, other shapes, different values for a shared tensor, values that are not
            finite.
    """
    matches = [_Match(tensors, net, renaming) for renaming in RENAMINGS]
    match = min(matches, key=lambda match: match.misfits)
    if match.misfits:
        raise ValueError(match.difference())
    match.check_values()
    return match.key_map()


class _Match:
    """One attempt; see `map_keys`."""

    def __init__(self, tensors: Mapping[str, Tensor], net: nn.Module, renaming: Renaming) -> None:
        self.net = type(net).__name__
        self.renaming = renaming
        self.tensors = tensors
        own = net.state_dict(keep_vars=True)
        renamed = [(renaming(short), key) for short, key in zip(stripped(tensors), tensors, strict=True)]
        theirs = dict(renamed)
        short_own = dict(zip(own, stripped(own), strict=True))
        shared: dict[int, list[str]] = {}
        for key, value in own.items():
            shared.setdefault(id(value), []).append(key)
        self.own = {keys[0]: own[keys[0]] for keys in shared.values()}
        self.names = {keys[0]: keys for keys in shared.values()}
        self.sources = {
            keys[0]: [theirs[short_own[k]] for k in keys if short_own[k] in theirs] for keys in shared.values()
        }
        used = {source for sources in self.sources.values() for source in sources}
        self.missing = [key for key, sources in self.sources.items() if not sources and not key.endswith(COUNTER)]
        self.unexpected = [key for _, key in renamed if key not in used]
        self.shapes = [
            f"{source}: {tuple(tensors[source].shape)} instead of {tuple(self.own[key].shape)}"
            for key, sources in self.sources.items()
            for source in sources
            if not _fits(tensors[source], self.own[key])
        ]
        self.misfits = len(self.missing) + len(self.unexpected) + len(self.shapes)

    def difference(self) -> str:
        """The message for a file that does not fit."""
        found = {
            "missing in the file": self.missing,
            "in the file only": self.unexpected,
            "of another shape": self.shapes,
        }
        lines = [f"  {len(keys)} {what}: {_some(keys)}" for what, keys in found.items() if keys]
        return "\n".join([f"The weights do not fit {self.net}:", *lines, self._remedy()])

    def _remedy(self) -> str:
        def parametric(keys: list[str]) -> bool:
            return bool(keys) and all(key.endswith((".alpha", ".beta")) for key in keys)

        if parametric(self.unexpected) and not self.missing:
            return "The file has a parametric activation: pass e.g. --activation configs/activation/pssilu.yaml."
        if parametric(self.missing) and not self.unexpected:
            return "The file lacks this activation's parameters: pass the --activation it was trained with, or none."
        if self.shapes and not self.missing and not self.unexpected and len(self.shapes) <= 2:
            return "Pass the --dataset that the weights were trained on, which gives the number of classes."
        return "Pass the --net, with its depth and width, that the weights were trained with."

    def check_values(self) -> None:
        """Refuse a shared tensor that the file holds with different values, and values that are not finite."""
        for key, sources in self.sources.items():
            first, *others = (self.tensors[source] for source in sources) if sources else (torch.zeros(()),)
            if not all(torch.equal(first, other) for other in others):
                values = [f"{source}={_brief(self.tensors[source])}" for source in sources]
                raise ValueError(
                    f"{self.net} shares one {key} among {len(self.names[key])} places, but the file has different "
                    f"values for it: {_some(values)}. Pass --activation_scope module if every place has its own."
                )
            if not torch.isfinite(first).all():
                raise ValueError(f"Weights must be finite, but {sources[0]} is not. Pass a checkpoint that works.")

    def key_map(self) -> KeyMap:
        """The result, once everything is checked."""
        rows = []
        state: dict[str, Tensor] = {}
        for key, value in self.own.items():
            sources = self.sources[key]
            rows.append(Row(sources[0] if sources else "", key, tuple(value.shape), len(self.names[key])))
            loaded = self.tensors[sources[0]] if sources else torch.zeros(value.shape)
            state |= dict.fromkeys(self.names[key], loaded.reshape(value.shape).to(value.dtype))
        return KeyMap(self.renaming.name, tuple(rows), state)


def stripped(keys: Iterable[str]) -> list[str]:
    """Keys without the prefixes that all of them share, as in `module.0.conv1.weight`."""
    short = list(keys)
    while prefix := next((p for p in PREFIXES if short and all(key.startswith(p) for key in short)), ""):
        short = [key.removeprefix(prefix) for key in short]
    return short


def _fits(theirs: Tensor, ours: Tensor) -> bool:
    return theirs.shape == ours.shape or theirs.numel() == ours.numel() == 1


def _some(words: list[str]) -> str:
    return ", ".join(words[:MOST_NAMED]) + (", ..." if len(words) > MOST_NAMED else "")


def _brief(value: Tensor) -> str:
    return f"{value.item():.6g}" if value.numel() == 1 else f"tensor {tuple(value.shape)}"
