"""Put parametric activations into any network that is built from modules."""

from collections.abc import Callable
from itertools import takewhile
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_paf.nn.activations import Activation, ParametricActivation
from lightning_paf.nn.modes import frozen

Scope = Literal["network", "stage", "module", "channel"]
"""How many places share one activation object."""

Targets = tuple[type[nn.Module], ...]

DEFAULT_TARGETS: Targets = (nn.ReLU, nn.SiLU, nn.GELU, Activation)

_SPELLINGS = {nn.GELU: "GELUTanh"}
"""Classes of timm for what is an option of a target's class: `nn.GELU(approximate="tanh")`."""


def swap_activations(
    net: nn.Module,
    make: Callable[[], nn.Module],
    *,
    targets: Targets = DEFAULT_TARGETS,
    scope: Scope = "network",
    example: Tensor | None = None,
) -> int:
    """Replace the activation modules of `net`, in place.

    Every attribute that holds a target counts as one place, also where several hold the same object. A swapped network
    can be swapped again, since `Activation` is among the default targets. Calls of `F.relu` and the like inside a
    `forward` are out of reach and stay, as do activations that are no targets (the sigmoid gates of
    squeeze-and-excitation; Hardswish, unless named). A target with `inplace=True` becomes an out-of-place one.

    Args:
        net: Any network; the replacements move to the device of its parameters.
        make: Makes one activation, e.g. the class `PSSiLU`; called once per object that is needed.
        targets: What to replace: instances of these classes, and modules without children whose class has the same
            name (timm has a GELU of its own, and GELUTanh for `nn.GELU(approximate="tanh")`).
        scope: `network`: one object everywhere (Dai et al. 2021). `stage`: one for each child of the innermost
            container that holds all places; these are the stages of a ResNet or ConvNeXt (its stem, where that has an
            activation, being one), the blocks of a transformer. `module`: one for each place. `channel`: one for each
            place, with parameters of shape [C].
        example: Input batch (1, C, H, W) for one forward pass that shows the number of channels; only for `channel`.

    Returns:
        Number of places.

    Raises:
        ValueError: Nothing to replace, an unknown scope, or channels that cannot be told.
    """
    places = _places(net, targets)
    if not places:
        raise ValueError(_nothing_to_swap(net, targets))
    if scope not in ("network", "stage", "module", "channel"):
        raise ValueError(f"scope must be network, stage, module or channel, but is {scope!r}. The paper's is network.")
    channels = _channels(net, places, example) if scope == "channel" else {}
    parameter = next(net.parameters(), None)
    made: dict[str, nn.Module] = {}
    for place, owner in zip(places, _owners(places, scope), strict=True):
        if owner not in made:
            made[owner] = _widened(make(), *channels[place]) if channels else make()
            made[owner].train(net.get_submodule(place).training)
            made[owner].to(None if parameter is None else parameter.device)
        net.set_submodule(place, made[owner])
    return len(places)


def stage_paths(net: nn.Module, targets: Targets = DEFAULT_TARGETS) -> list[str]:
    """Paths of what the scope `stage` gives an activation of its own, in the order of definition."""
    return list(dict.fromkeys(_owners(_places(net, targets), "stage")))


def _places(net: nn.Module, targets: Targets) -> list[str]:
    """Paths of all targets below `net`; a parent that is reachable by several paths is listed by its first."""
    names = {target.__name__ for target in targets} | {_SPELLINGS[target] for target in targets if target in _SPELLINGS}
    seen = set()
    places = []
    for path, module in net.named_modules(remove_duplicate=False):
        parent, _, attribute = path.rpartition(".")
        place = (id(net.get_submodule(parent)), attribute)
        namesake = type(module).__name__ in names and next(module.children(), None) is None
        if path and place not in seen and (isinstance(module, targets) or namesake):
            seen.add(place)
            places.append(path)
    return places


def _owners(places: list[str], scope: Scope) -> list[str]:
    """For each place the name of the activation object it gets."""
    if scope == "network":
        return [""] * len(places)
    if scope == "stage":
        parts = [place.split(".") for place in places]
        shared = takewhile(lambda names: len(set(names)) == 1, zip(*parts, strict=False))
        depth = len(list(shared)) + 1
        return [".".join(part[:depth]) for part in parts]
    return places


def _widened(activation: nn.Module, channels: int, dim: Literal[1, -1]) -> nn.Module:
    """Give an activation one parameter per channel."""
    if not isinstance(activation, ParametricActivation):
        raise ValueError(
            f"scope='channel' needs a parametric activation, but {type(activation).__name__} is none. "
            "Use e.g. PSSiLU, or scope='module'."
        )
    return activation.per_channel(channels, dim)


class _Probe(nn.Module):
    """Stands in for an activation during one forward pass and notes what reaches it."""

    def __init__(self, inner: nn.Module, latest: dict[str, Tensor]) -> None:
        super().__init__()
        self.inner = inner
        self.latest = latest
        self.seen: set[tuple[int, Literal[1, -1]]] = set()

    def forward(self, x: Tensor) -> Tensor:
        # (N, H, W, C) differs from (N, C, H, W) only in where it comes from: a linear layer acts on the last dimension.
        dim: Literal[1, -1] = 1 if x.ndim == 4 and x is not self.latest.get("linear") else -1
        self.seen.add((x.shape[dim], dim))
        result: Tensor = self.inner(x)
        return result


def _channels(net: nn.Module, places: list[str], example: Tensor | None) -> dict[str, tuple[int, Literal[1, -1]]]:
    """Number of channels at each place and the dimension that they are in, from one forward pass in eval mode."""
    if example is None:
        raise ValueError(
            "scope='channel' must see a forward pass to count channels, but example is None. "
            "Pass an input batch of the network, e.g. example=torch.zeros(1, 3, 32, 32)."
        )
    latest: dict[str, Tensor] = {}

    def note(module: nn.Module, args: Any, output: Tensor) -> None:
        latest["linear"] = output

    probes = {place: _Probe(net.get_submodule(place), latest) for place in places}
    hooks = [module.register_forward_hook(note) for module in net.modules() if isinstance(module, nn.Linear)]
    parameter = next(net.parameters(), example)
    try:
        for place, probe in probes.items():
            net.set_submodule(place, probe)
        with frozen(net), torch.no_grad():
            net(example.to(parameter.device))
    finally:
        for hook in hooks:
            hook.remove()
        for place, probe in probes.items():
            net.set_submodule(place, probe.inner)
    for place, probe in probes.items():
        if len(probe.seen) != 1:
            widths = " and ".join(str(width) for width, _ in sorted(probe.seen))
            raise ValueError(
                f"scope='channel' needs one number of channels for every activation, but {place!r} of "
                f"{type(net).__name__} is used with {widths or 'none: the forward pass does not reach it'}. "
                "Use scope='module'."
            )
    return {place: next(iter(probe.seen)) for place, probe in probes.items()}


def _nothing_to_swap(net: nn.Module, targets: Targets) -> str:
    """What is wrong with a network without a target, and what to do about it."""
    wanted = ", ".join(target.__name__ for target in targets)
    others = {
        type(module)
        for module in net.modules()
        if "activation" in type(module).__module__ and next(module.children(), None) is None
    }
    message = f"{type(net).__name__} has no module to replace (looked for {wanted})"
    if others:
        names = ", ".join(sorted(other.__name__ for other in others))
        return f"{message}, but it does have {names}. Pass targets=(...) with the classes that you mean."
    return (
        f"{message}: it calls functions such as F.relu inside forward. "
        "Use a network that is built from modules, e.g. timm_net('resnet18')."
    )
