"""Faster equivalent of a frozen model, for attacks in evaluations.

Attacks confirm adversarial images with the original model.
"""

import copy
import logging
import warnings
from dataclasses import dataclass
from typing import Literal, get_args
from weakref import WeakSet

import torch
from torch import Tensor, fx, nn

from lightning_paf.functional.predictions import undefined
from lightning_paf.nn.activations import fuse_activations
from lightning_paf.nn.equivalence import difference, generators_kept, is_hooked, summary
from lightning_paf.nn.modes import frozen, full_precision
from lightning_paf.speed.folding import Folding

Precision = Literal["fp32", "bf16"]
"""Precision of a search: single precision, or mostly bfloat16."""

_PROBES = 4  # images of the equivalence check, which uses each twice

log = logging.getLogger(__name__)
_reported: WeakSet[nn.Module] = WeakSet()  # models whose missing fast path has been logged


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
    layer run in bfloat16. Images and logits keep single precision, since bfloat16 cannot resolve small perturbations.

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
        self._checked = False
        self._not_finite: Tensor | int = 0

    @property
    def folded(self) -> bool:
        """Whether the fast path is the folded copy; known after the first call."""
        return self._folded is not None

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (N, K) in float32 by the fast path, with gradients for `x`."""
        if x.requires_grad:
            x = x.view_as(x)  # receives the gradient of this pass alone
            x.register_hook(self._count_not_finite)  # type: ignore[no-untyped-call]
        if not self._checked and len(x) > 0 and not self.model.training:
            self._check(x[:_PROBES].detach())
        self.passes.forward += len(x)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            if self._folded is None or self.model.training:
                logits: Tensor = self.model(x)
            else:
                logits = self._folded(x.contiguous(memory_format=torch.channels_last))
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
        self._not_finite = self._not_finite + undefined(gradient).sum()

    def warn_of_gradients(self) -> None:
        """Warn of gradients that were not finite.

        Call it at the end of an evaluation, since it synchronises the device.
        """
        count = int(self._not_finite)
        if count:
            warnings.warn(
                f"Gradients of {count} of {self.passes.backward} images were not finite, and NaN was replaced by 0. "
                "The robust accuracy may be too high: look for a root, a logarithm or a division at 0 in the model.",
                stacklevel=2,
            )

    def _check(self, x: Tensor) -> None:
        """Check the folded model; then convert it to its precision, or drop it."""
        self._checked = True
        if self._folded is not None:
            folded = self._folded.forward  # the call of a graph prints errors
            with torch.autocast(x.device.type, enabled=False), full_precision(), frozen(self.model):
                self._refusal = difference(
                    self.model, lambda probes: folded(probes.contiguous(memory_format=torch.channels_last)), x
                )
            self.passes.exact += 2 * len(x)
        if self._refusal is not None:
            self._folded = None
            self._report(self._refusal)
        elif self._folded is not None and self.precision == "bf16":
            _halve(self._folded)

    def _report(self, reason: str) -> None:
        if self.model not in _reported:
            _reported.add(self.model)
            log.warning(
                "%s has no equivalent folded copy: %s. The attack uses the model itself, which is slower.",
                type(getattr(self.model, "net", self.model)).__name__,
                reason,
            )


def number_of_classes(model: nn.Module, x: Tensor) -> int:
    """Number of logits of a model for images (N, C, H, W)."""
    with torch.no_grad(), frozen(model), generators_kept(model, x.device):
        return SearchModel(model, fold=False).exact(x[:1]).shape[-1]


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
