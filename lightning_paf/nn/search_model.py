"""A cheaper twin of a frozen model, for attacks that look for adversarial images and confirm what they find."""

import copy
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, fx, nn

from lightning_paf.nn.activations import fuse_activations
from lightning_paf.nn.folding import Folding
from lightning_paf.nn.modes import full_precision

Precision = Literal["fp32", "bf16"]
"""How a search computes: in single precision, or mostly in bfloat16."""

_PROBES = 8  # images that show whether the twin computes the same function
_TOLERANCE = 1e-2  # of the largest logit: wrong twins miss by more, TensorFloat-32 convolutions by less


@dataclass
class Passes:
    """Images that went through a model.

    Attributes:
        forward: Through the fast path.
        backward: Whose gradient was taken, on either path.
        exact: Through the untouched model.
    """

    forward: int = 0
    backward: int = 0
    exact: int = 0

    def __sub__(self, earlier: "Passes") -> "Passes":
        return Passes(self.forward - earlier.forward, self.backward - earlier.backward, self.exact - earlier.exact)


class SearchModel(nn.Module):
    """Computes the logits of a model in eval mode by a faster path, and exactly where a decision depends on it.

    The fast path is a copy with BatchNorm folded into the convolutions before it and parametric activations as one
    kernel each, in channels-last layout, without parameter gradients. The first images of the first call check that
    it computes the same function; a network that cannot be traced, or whose trace differs (random layers, hooks that
    change results), is used as it is. With `bf16` everything between the first convolution and the classification
    layer runs in bfloat16: images and logits keep single precision, since a perturbation may be smaller than what
    bfloat16 resolves.

    Weights that change after the construction do not reach the fast path. Make a new `SearchModel` then.

    Args:
        model: Images (N, C, H, W) to logits (N, K). It is neither changed nor copied into the result of `exact`.
        precision: Of the fast path. `bf16` pays off on hardware with such instructions.
        fold: False uses the model itself as the fast path.

    Raises:
        ValueError: Unknown precision.
    """

    def __init__(self, model: nn.Module, precision: Precision = "fp32", fold: bool = True) -> None:
        if precision not in get_args(Precision):
            raise ValueError(f"precision must be fp32 or bf16, but is {precision!r}. The exact verdict is fp32.")
        super().__init__()
        self.model = model
        self.precision = precision
        self.passes = Passes()
        self._twin = _twin(model) if fold else None
        self._checked = False

    @property
    def folded(self) -> bool:
        """Whether the fast path is the folded copy; known after the first call."""
        return self._twin is not None

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) in float32 by the fast path, with gradients for `x`."""
        if not self._checked and len(x) > 0:
            self._check(x[:_PROBES].detach())
        self.passes.forward += len(x)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            if self._twin is None:
                logits: Tensor = self.model(x)
            else:
                logits = self._twin(x.contiguous(memory_format=torch.channels_last))
        return self._counted(logits.float())

    def exact(self, x: Tensor) -> Tensor:
        """Logits (N, K) of the untouched model in float32, with gradients for `x` where these are enabled."""
        self.passes.exact += len(x)
        with torch.autocast(x.device.type, enabled=False), full_precision():
            logits: Tensor = self.model(x)
        return self._counted(logits.float())

    def _counted(self, logits: Tensor) -> Tensor:
        if logits.requires_grad:
            logits.register_hook(self._count_backward)  # type: ignore[no-untyped-call]
        return logits

    def _count_backward(self, gradient: Tensor) -> None:
        self.passes.backward += len(gradient)

    @torch.no_grad()
    def _check(self, x: Tensor) -> None:
        """Keep the twin only if it computes the same function; then give it its precision."""
        self._checked = True
        if self._twin is None:
            return
        with torch.autocast(x.device.type, enabled=False):
            expected = self.exact(x)
            try:
                # Its `forward`, since the call of a graph prints errors.
                found = self._twin.forward(x.contiguous(memory_format=torch.channels_last))
            except RuntimeError:  # a network that views its maps as vectors, which this layout does not allow
                found = expected.new_full((), torch.nan)
        if not _close(found, expected):
            self._twin = None
        elif self.precision == "bf16":
            _halve(self._twin)


def _twin(model: nn.Module) -> fx.GraphModule | None:
    """A folded copy of the model, or None where its `forward` cannot be followed."""
    try:
        folding = Folding(copy.deepcopy(model).eval().requires_grad_(False))
        folding.refresh(autocast=False)
    except Exception:  # copying and tracing run code of the network, which may fail in any way
        return None
    fuse_activations(folding.net)
    return folding.net.to(memory_format=torch.channels_last)


def _close(found: Tensor, expected: Tensor) -> bool:
    """Whether logits agree up to rounding; where one is not finite, the other must be the same."""
    scale = float(expected.nan_to_num(0.0, 0.0, 0.0).abs().max())
    return torch.allclose(found, expected, rtol=0.0, atol=_TOLERANCE * scale, equal_nan=True)


def _halve(net: fx.GraphModule) -> None:
    """Store weights in bfloat16 (autocast does the rest), except those that meet images or make logits."""
    targets = [str(node.target) for node in net.graph.nodes if isinstance(_layer(net, node), nn.Conv2d | nn.Linear)]
    outer = dict.fromkeys(targets[:1], torch.bfloat16) | dict.fromkeys(targets[-1:], torch.float32)
    for target in set(targets) - outer.keys():
        net.get_submodule(target).bfloat16()
    for target, dtype in outer.items():
        net.set_submodule(target, _Single(net.get_submodule(target), dtype))


class _Single(nn.Module):
    """Runs a layer in single precision, also under autocast."""

    def __init__(self, layer: nn.Module, out: torch.dtype) -> None:
        super().__init__()
        self.layer = layer
        self.out = out

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            result: Tensor = self.layer(x.float()).to(self.out)
        return result


def _layer(net: fx.GraphModule, node: Any) -> nn.Module | None:
    """The module that a node of the graph calls, if it calls one."""
    return net.get_submodule(str(node.target)) if isinstance(node, fx.Node) and node.op == "call_module" else None
