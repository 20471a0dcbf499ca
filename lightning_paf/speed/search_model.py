"""Faster equivalent of a frozen model, for attacks in evaluations.

Attacks confirm adversarial images with the original model.
"""

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn

from lightning_paf.functional.predictions import known_finite, undefined
from lightning_paf.nn.activations import fuse_activations
from lightning_paf.nn.equivalence import difference, generators_kept, is_hooked, summary
from lightning_paf.nn.modes import frozen, full_precision
from lightning_paf.nn.softened import SoftenedModel
from lightning_paf.speed.folding import Folding

Precision = Literal["fp32", "bf16"]
"""Precision of a search: single precision, or mostly bfloat16."""

_PROBES = 4  # images of the equivalence check, which uses each twice

log = logging.getLogger(__name__)
_reported: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()  # reasons that have been logged


@dataclass
class Passes:
    """Numbers of images that a model has processed.

    Attributes:
        forward: Forward passes of the fast path.
        backward: Backward passes of either path.
        exact: Forward passes of the original model, including those of the equivalence check.
    """

    forward: int = 0
    backward: int = 0
    exact: int = 0

    def __sub__(self, earlier: "Passes") -> "Passes":
        return Passes(self.forward - earlier.forward, self.backward - earlier.backward, self.exact - earlier.exact)


class SearchModel(nn.Module):
    """Fast eval-mode equivalent of a model, with exact logits on request.

    The fast path is a copy in channels-last layout without parameter gradients. BatchNorm is folded into the preceding
    convolutions, and parametric activations are one kernel each. The first call checks that it computes the same
    function, including gradients (see `equivalence.difference`). If a network cannot be traced, draws random numbers,
    has hooks or replaces gradients (straight-through estimators, autograd functions, `detach`), the model itself is
    used, which is logged once per model. With `bf16`, all layers between the first convolution and the classification
    layer run in bfloat16, unless logits or gradients then differ by more than rounding. Images and logits keep single
    precision, since bfloat16 cannot resolve small perturbations.

    In training mode, the model itself is used. The fast path ignores later changes of the weights: make a new
    `SearchModel` after them.

    Args:
        model: Images (N, C, H, W) to logits (N, K); never modified.
        precision: Precision of the fast path. `bf16` is faster on hardware with such instructions.
        fold: False uses the model itself as the fast path.

    Raises:
        ValueError: Unknown precision.
    """

    def __init__(self, model: nn.Module, precision: Precision = "fp32", fold: bool = True) -> None:
        if precision not in get_args(Precision):
            raise ValueError(f"precision must be fp32 or bf16, got {precision!r}. Pass precision=fp32.")
        super().__init__()
        self.model = model
        self.precision = precision
        self.passes = Passes()
        self._folded, self._refusal = _fold(model) if fold else (None, None)
        self._softened: Callable[..., Tensor] | None = None
        self._checked = False
        self._not_finite: Tensor | int = 0

    @property
    def folded(self) -> bool:
        """Whether the fast path is the folded copy; known after the first call."""
        return self._folded is not None

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (N, K) in float32 by the fast path, with gradients for `x`."""
        if not self._checked and len(x) > 0 and not self.model.training:
            self._check(x[:_PROBES].detach())
        return self._pass(self.model if self._folded is None or self.model.training else self._folded, x)

    def softened(self, x: Tensor, softness: Tensor) -> Tensor:
        """Compute logits (N, K) with softened activations, see `SoftenedModel`.

        `forward` must have been called before.
        """
        if self._softened is None:
            try:
                self._softened = SoftenedModel(self._folded or self.model)
            except Exception as error:  # a network can raise anything
                self._softened = lambda x, softness: self.model(x)
                log.warning("The search softens no activations: the network cannot be copied (%s).", summary(error))
        return self._pass(partial(self._softened, softness=softness), x)

    def _pass(self, net: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if x.requires_grad:
            x = x.view_as(x)  # receives the gradient of this pass alone
            x.register_hook(self._count_not_finite)  # type: ignore[no-untyped-call]
        self.passes.forward += len(x)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            logits = net(x if net is self.model else x.contiguous(memory_format=torch.channels_last))
        return self._counted(logits.float())

    def exact(self, x: Tensor) -> Tensor:
        """Compute logits (N, K) in float32 by the original model."""
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

    def _count_not_finite(self, gradient: Tensor) -> None:
        if not known_finite(gradient):
            self._not_finite = self._not_finite + undefined(gradient).sum()

    @property
    def not_finite(self) -> int:
        """Number of images whose gradients were not finite; synchronises the device."""
        return int(self._not_finite)

    def _check(self, x: Tensor) -> None:
        """Check the folded model and the precision; drop each if the function differs."""
        self._checked = True
        if self._folded is not None:
            self._refusal = self._difference(x, self._folded)
        if self._refusal is not None:
            self._folded = None
            self._report(f"has no equivalent folded copy: {self._refusal}. The attack uses the model itself")
        if self.precision == "bf16":
            if self._folded is not None:
                _halve(self._folded)
            reason = self._difference(x, self._folded or self.model, torch.bfloat16)
            if reason is not None:
                self.precision = "fp32"
                self._folded = None
                self._report(f"has no equivalent bf16 search: {reason}. The attack uses the model itself in fp32")

    def _difference(self, x: Tensor, fast: nn.Module, dtype: torch.dtype | None = None) -> str | None:
        """Compare `fast`, under autocast to `dtype`, with the model in float32."""
        self.passes.exact += 2 * len(x)
        call = fast.forward  # the call of a graph prints errors

        def logits(images: Tensor) -> Tensor:
            found: Tensor = call(images.contiguous(memory_format=torch.channels_last))
            return found.float()

        with torch.autocast(x.device.type, dtype, enabled=dtype is not None), full_precision(), frozen(self.model):
            exact = self.model if dtype is None else _Single(self.model, torch.float32)
            return difference(exact, logits, x)

    def _report(self, reason: str) -> None:
        reported = _reported.setdefault(self.model, set())
        if reason not in reported:
            reported.add(reason)
            log.warning("%s %s, which is slower.", type(getattr(self.model, "net", self.model)).__name__, reason)


def _fold(model: nn.Module) -> tuple[fx.GraphModule | None, str | None]:
    """Return a folded copy of the model, or None and the reason why there is none."""
    if any(is_hooked(module) for module in model.modules()):
        return None, "its hooks would run on the copy instead"
    try:
        with generators_kept(model):
            folding = Folding(copy.deepcopy(model).eval().requires_grad_(False))
        folding.refresh(autocast=False)
    except Exception as error:  # a network can raise anything
        return None, summary(error)
    fuse_activations(folding.net)
    return folding.net.to(memory_format=torch.channels_last), None


def _halve(net: fx.GraphModule) -> None:
    """Store all weights but those of the first and last layer in bfloat16."""
    called = [str(node.target) for node in net.graph.nodes if node.op == "call_module"]
    targets = [target for target in called if isinstance(net.get_submodule(target), nn.Conv2d | nn.Linear)]
    outer = dict.fromkeys(targets[:1], torch.bfloat16) | dict.fromkeys(targets[-1:], torch.float32)
    for target in set(targets) - outer.keys():
        net.get_submodule(target).bfloat16()
    for target, dtype in outer.items():
        net.set_submodule(target, _Single(net.get_submodule(target), dtype))


class _Single(nn.Module):
    """A layer in single precision, also under autocast."""

    def __init__(self, layer: nn.Module, out: torch.dtype) -> None:
        super().__init__()
        self.layer = layer
        self.out = out

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            result: Tensor = self.layer(x.float()).to(self.out)
        return result
