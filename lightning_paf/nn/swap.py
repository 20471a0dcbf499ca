"""Replacement of the activations of any network that is built from modules."""

from collections.abc import Callable
from contextlib import ExitStack
from itertools import takewhile
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_paf.nn.activations import Activation, ParametricActivation
from lightning_paf.nn.modes import frozen

Scope = Literal["network", "stage", "module", "channel"]
"""Part of the network that shares one activation object."""

Targets = tuple[type[nn.Module], ...]

DEFAULT_TARGETS: Targets = (nn.ReLU, nn.SiLU, nn.GELU, Activation)

_SPELLINGS = {nn.GELU: "GELUTanh"}
"""Classes of timm for options of a target's class: `nn.GELU(approximate="tanh")`."""


def swap_activations(
    net: nn.Module,
    make: Callable[[], nn.Module],
    *,
    targets: Targets = DEFAULT_TARGETS,
    scope: Scope = "network",
    example: Tensor | None = None,
) -> int:
    """Replace the activation modules of `net` in place.

    It replaces every attribute that holds a target, even if several hold the same object. A network can be swapped
    again, since `Activation` is among the default targets. Calls of functions such as `F.relu` inside a `forward` stay,
    and so do other activations (the sigmoid gates of squeeze-and-excitation; Hardswish, unless named). Replacements of
    targets with `inplace=True` are not in place.

    Args:
        net: Any network; the replacements move to the device of its parameters.
        make: Makes one activation, e.g. the class `PSSiLU`; called once per object.
        targets: Classes to replace, including modules without children whose class has the same name (timm has a
            separate GELU, and GELUTanh for `nn.GELU(approximate="tanh")`).
        scope: `network`: one object everywhere (Dai et al. 2021). `stage`: one per child of the innermost container
            of all targets: the stages of a ResNet or ConvNeXt (with its stem, if that has an activation), the blocks
            of a transformer. `module`: one per target. `channel`: one per target, with parameters of shape [C].
        example: Input batch (1, C, H, W) for a forward pass that counts channels; only for `channel`.

    Returns:
        Number of replaced attributes.

    Raises:
        ValueError: Nothing to replace, an unknown scope, or an unknown number of channels.
    """
    paths = target_paths(net, targets)
    if not paths:
        raise ValueError(_nothing_to_swap(net, targets))
    if scope not in get_args(Scope):
        raise ValueError(
            f"scope must be network, stage, module or channel, got {scope!r}. Pass scope=network, as in the paper."
        )
    channels = _channels(net, paths, example) if scope == "channel" else {}
    parameter = next(net.parameters(), None)
    made: dict[str, nn.Module] = {}
    for path, owner in zip(paths, _owners(paths, scope), strict=True):
        if owner not in made:
            made[owner] = _per_channel(make(), *channels[path]) if channels else make()
            made[owner].train(net.get_submodule(path).training)
            made[owner].to(None if parameter is None else parameter.device)
        net.set_submodule(path, made[owner])
    return len(paths)


def stage_paths(net: nn.Module, targets: Targets = DEFAULT_TARGETS) -> list[str]:
    """List the parts that share an activation in the scope `stage`.

    Paths are in the order of definition.
    """
    return list(dict.fromkeys(_owners(target_paths(net, targets), "stage")))


def target_paths(net: nn.Module, targets: Targets) -> list[str]:
    """List the paths of all targets in `net`.

    Children of a shared module are listed once, by their first path.
    """
    names = {target.__name__ for target in targets} | {_SPELLINGS[target] for target in targets if target in _SPELLINGS}
    found: dict[tuple[int, str], str] = {}
    for path, module in net.named_modules(remove_duplicate=False):
        parent, _, attribute = path.rpartition(".")
        same_name = type(module).__name__ in names and next(module.children(), None) is None
        if path and (isinstance(module, targets) or same_name):
            found.setdefault((id(net.get_submodule(parent)), attribute), path)
    return list(found.values())


def _owners(paths: list[str], scope: Scope) -> list[str]:
    """For each path the name of its activation object."""
    if scope == "network":
        return [""] * len(paths)
    if scope == "stage":
        parts = [path.split(".") for path in paths]
        shared = takewhile(lambda names: len(set(names)) == 1, zip(*parts, strict=False))
        depth = len(list(shared)) + 1
        return [".".join(part[:depth]) for part in parts]
    return paths


def _per_channel(activation: nn.Module, channels: int, dim: Literal[1, -1]) -> nn.Module:
    if not isinstance(activation, ParametricActivation):
        raise ValueError(
            f"The activation must be parametric for scope='channel', got {type(activation).__name__}. "
            "Pass e.g. PSSiLU, or scope='module'."
        )
    return activation.per_channel(channels, dim)


class _Probe(nn.Module):
    """Records the channels of an activation's inputs during one forward pass."""

    def __init__(self, inner: nn.Module, latest: dict[str, Tensor]) -> None:
        super().__init__()
        self.inner = inner
        self.latest = latest
        self.seen: set[tuple[int, Literal[1, -1]]] = set()

    def forward(self, x: Tensor) -> Tensor:
        # (N, H, W, C) differs from (N, C, H, W) in its source only: a linear layer, which acts on the last dimension.
        dim: Literal[1, -1] = 1 if x.ndim == 4 and x is not self.latest.get("linear") else -1
        self.seen.add((x.shape[dim], dim))
        result: Tensor = self.inner(x)
        return result


def _channels(net: nn.Module, paths: list[str], example: Tensor | None) -> dict[str, tuple[int, Literal[1, -1]]]:
    """Number of channels at each path, and their dimension.

    Determined in one forward pass in eval mode.
    """
    if example is None:
        raise ValueError(
            "example must be an input batch for scope='channel', got None. Pass e.g. torch.zeros(1, 3, 32, 32)."
        )
    latest: dict[str, Tensor] = {}

    def note(module: nn.Module, args: Any, output: Tensor) -> None:
        latest["linear"] = output

    probes = {path: _Probe(net.get_submodule(path), latest) for path in paths}
    linear = [module for module in net.modules() if isinstance(module, nn.Linear)]
    parameter = next(net.parameters(), example)
    with ExitStack() as restored:
        for module in linear:
            restored.enter_context(module.register_forward_hook(note))
        for path, probe in probes.items():
            net.set_submodule(path, probe)
            restored.callback(net.set_submodule, path, probe.inner)
        with frozen(net), torch.no_grad():
            net(example.to(parameter.device))
    for path, probe in probes.items():
        if len(probe.seen) != 1:
            widths = " and ".join(str(width) for width, _ in sorted(probe.seen))
            raise ValueError(
                f"{path!r} of {type(net).__name__} must have one number of channels for scope='channel', got "
                f"{widths or 'none, as the forward pass does not call it'}. Pass scope='module'."
            )
    return {path: next(iter(probe.seen)) for path, probe in probes.items()}


def _nothing_to_swap(net: nn.Module, targets: Targets) -> str:
    """Error message for a network without targets."""
    wanted = ", ".join(target.__name__ for target in targets)
    others = {
        type(module)
        for module in net.modules()
        if "activation" in type(module).__module__ and next(module.children(), None) is None
    }
    message = f"{type(net).__name__} must have a module of {wanted} to replace, got"
    if others:
        return f"{message} {', '.join(sorted(other.__name__ for other in others))}. Pass targets=(...)."
    return (
        f"{message} none; perhaps it calls functions such as F.relu. "
        "Pass a network that is built from modules, e.g. TimmNet('resnet18')."
    )
