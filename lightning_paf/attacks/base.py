"""The contract of every attack."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType
from typing import Any, final

import torch
from torch import Tensor, nn

from lightning_paf.functional.geometry import Bounds, finite_gradient, geometry_of
from lightning_paf.functional.losses import cross_entropy
from lightning_paf.functional.predictions import check_labels, undefined_first
from lightning_paf.nn.modes import Mode, frozen
from lightning_paf.speed.search_model import Precision, SearchModel
from lightning_paf.types import Forward, Norm, PerExampleLoss, Radius

# Far above every published threat model in [0, 1], far below one that was typed in grey levels.
_LARGEST_EPS: Mapping[Norm, float] = MappingProxyType({"linf": 1.0, "l2": 50.0, "l1": 1000.0})

_PIXEL_TOLERANCE = 1e-4
"""Pixels may leave the bounds by this much at entry: interpolating augmentations overshoot by a rounding error."""


class Attack(ABC):
    """Finds a perturbation of at most `eps` that raises a loss. Configuration only; the model comes with the call.

    Subclasses write `perturb`, which is mathematics alone; the call around it takes care of the model, of autograd and
    of the inputs. It leaves the model as found: state dict, training flags, `requires_grad` and `.grad`. It works under
    `torch.no_grad` and `torch.inference_mode`, and runs in the precision (autocast) of the caller.

    Args:
        eps: Largest perturbation, in units of pixels in [0, 1]: `8/255`, `0.031`.
        norm: How a perturbation is measured.
        mode: Whether the attacked model is in eval mode, or in train mode with its buffers protected.
        bounds: Smallest and largest pixel value; null for inputs without bounds.
        loss: What to increase where the call does not say it: `(output, target) -> (N,)`. Default: cross-entropy.
        fold: False attacks the model itself, never a folded copy of it. Slower, and equal up to rounding.

    Raises:
        TypeError: `eps` is not a number.
        ValueError: `eps` is not positive, or so large that it must be grey levels; unknown norm or mode; empty bounds.
    """

    fixed_loss: bool = False
    """Whether the attack brings its own losses and refuses `loss` and `forward` in the call."""

    fold: bool = True
    """Whether it may work on a folded copy of the model that computes the same: faster, and equal up to rounding."""

    around: Callable[[], AbstractContextManager[object]] = nullcontext
    """Makes what every call happens inside of, such as a stopwatch; set on one attack by whoever watches it."""

    def __init__(
        self,
        eps: Radius = Fraction(8, 255),
        *,
        norm: Norm = "linf",
        mode: Mode = "eval",
        bounds: Bounds = (0.0, 1.0),
        loss: PerExampleLoss | None = None,
        fold: bool = True,
    ) -> None:
        geometry_of(norm)  # refuses an unknown norm
        if mode not in ("eval", "train"):
            raise ValueError(f"mode must be eval or train, but is {mode!r}. Use eval unless the method asks for train.")
        if bounds is not None and not bounds[0] < bounds[1]:
            raise ValueError(f"bounds must be increasing, but are {bounds}. Write bounds=[0, 1], or null for none.")
        _check_eps(eps, norm, bounds)
        self.eps = eps
        self.norm = norm
        self.mode = mode
        self.bounds = bounds
        self.loss = loss
        self.fold = fold
        self._seen_pixels = False

    @property
    def radius(self) -> float:
        """How far a result may be from its image, in `norm`. Equals `eps` unless the subclass says otherwise."""
        return float(self.eps)

    @property
    def label(self) -> str:
        """A short name for tables and records, such as `pgd` or `apgd-ce`."""
        return type(self).__name__.lower()

    def stages(self) -> "tuple[Attack, ...]":
        """The attacks that a verdict runs in turn, each on the examples that those before left correctly classified.

        By default the attack itself. An attack made of several returns them, so that each is recorded, seeded and
        resumed on its own.
        """
        return (self,)

    def search_model(self, model: nn.Module, precision: Precision = "fp32") -> SearchModel:
        """The model with the fast path that a search by this attack may use."""
        return SearchModel(model, precision, fold=self.fold)

    def describe(self) -> dict[str, Any]:
        """The threat model and the settings as plain values, for result files.

        With `fold` only where it is off: records depend on it, by rounding, but those made with the default stay valid.
        """
        return ({} if self.fold else {"fold": False}) | {
            "attack": type(self).__name__,
            "norm": self.norm,
            "eps": radius_text(self.eps),
            "eps_value": float(self.eps),
            "mode": self.mode,
            "bounds": None if self.bounds is None else list(self.bounds),
            "loss": getattr(self.loss or cross_entropy, "__name__", type(self.loss).__name__),
        }

    @final
    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        loss: PerExampleLoss | None = None,
        forward: Forward | None = None,
    ) -> Tensor:
        """Attack a batch.

        Args:
            model: What to freeze during the attack; and to call, unless `forward` is given.
            x: Images (N, C, H, W), floating point, inside `bounds`. Not modified.
            y: What the loss compares with: labels (N,), a distribution (N, C), a clean image. Not modified.
            loss: What to increase, `(output, y) -> (N,)`. Default: the attack's own loss, else cross-entropy.
            forward: How to call the model. Default: `model` itself, or its `attack_twin` where it has one.

        Returns:
            Perturbed images, shaped like `x`, without a graph.

        Raises:
            ValueError: Pixels outside `bounds`; `y` that is not labels, where no `loss` is given. Examined in every
                call on the CPU, elsewhere in the first call only, since reading the answer makes the device wait.
        """
        if self.fixed_loss and (loss is not None or forward is not None):
            raise ValueError(
                f"{type(self).__name__} brings its own losses and attacks the logits of the model, but got a custom "
                "loss or forward. Leave both out, or use PGD."
            )
        with self.around(), self._ready(model):
            x, y = self._own(x, y if loss is None else None), y.detach().clone()
            if len(x) == 0:
                return x
            return self.perturb(forward or self._path(model), x, y, loss or self.loss or cross_entropy).detach()

    @abstractmethod
    def perturb(self, forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
        """The mathematics. Gradients are on, the model behind `forward` is frozen, `x` and `y` belong to the attack."""

    def _path(self, model: nn.Module) -> Forward:
        """The model, or in eval mode its faster twin where it has one (see `Classifier.attack_twin`).

        Attacks that bring their own losses end in a verdict, which is that of the model.
        """
        twin = getattr(model, "attack_twin", None)
        if twin is None or self.mode != "eval" or self.fixed_loss or not self.fold:
            return model
        refreshed: Forward = twin.refresh()
        return refreshed

    @contextmanager
    def _ready(self, model: nn.Module) -> Iterator[None]:
        """Leave inference mode (gradients do not exist there), enable gradients, freeze the model."""
        with torch.inference_mode(False), torch.enable_grad(), frozen(model, self.mode):
            yield

    def _own(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """A copy of the images, since autograd may not save an inference tensor; they and their labels are checked."""
        if not x.is_floating_point():
            raise ValueError(f"Images must be floating point, but are {x.dtype}. Divide uint8 images by 255.")
        x = x.detach().clone()
        known = self._seen_pixels and x.device.type != "cpu"
        if labels is not None and not known:
            check_labels(labels, len(x))
        if self.bounds is not None and x.numel() > 0 and not known:
            low, high = (limit.item() for limit in x.aminmax())
            if not (low >= self.bounds[0] - _PIXEL_TOLERANCE and high <= self.bounds[1] + _PIXEL_TOLERANCE):
                raise ValueError(
                    f"Pixels outside [{self.bounds[0]:g}, {self.bounds[1]:g}] reached {type(self).__name__}: they lie "
                    f"in [{low:g}, {high:g}]. Give images in this range; normalisation belongs inside the model."
                )
            self._seen_pixels = True
        return x


def loss_and_gradient(forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> tuple[Tensor, Tensor]:
    """The loss per example (N,) at `x` and its gradient with respect to `x`, neither with a graph.

    The gradient is that of the sum: independent of the batch size, and further from underflow in half precision than
    that of the mean. `.grad` is never written.

    Where output or loss are undefined, the loss is infinite and the gradient zero: an attack that follows it stays
    there. Elsewhere gradients are finite, see `finite_gradient`.

    Raises:
        ValueError: The loss does not return one value per example.
    """
    output, values, gradient = raw_gradient(forward, x, y, loss)
    values = undefined_first(values, output)
    return values, unless_infinite(values, finite_gradient(gradient))


def raw_gradient(forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> tuple[Any, Tensor, Tensor]:
    """Output, loss (N,) and gradient as `loss_and_gradient`, but as autograd returns them, NaN included."""
    x = x.detach().requires_grad_()
    output = forward(x)
    values = loss(output, y)
    if values.shape != x.shape[:1]:
        raise ValueError(
            f"An attack's loss must return one value per example, shape ({len(x)},), but returned shape "
            f"{tuple(values.shape)}. Use reduction='none', and average over everything but the first dimension."
        )
    (gradient,) = torch.autograd.grad(values.sum(), x)
    return output, values.detach(), gradient


@torch.no_grad()
def loss_at(forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
    """The loss per example (N,) at `x`, infinite where output or loss are undefined."""
    output = forward(x)
    return undefined_first(loss(output, y), output)


def unless_infinite(values: Tensor, steps: Tensor) -> Tensor:
    """Steps (N, ...), zero for images whose loss (N,) is infinite: no other image is a better result."""
    return steps.masked_fill((values == torch.inf).view(-1, *[1] * (steps.dim() - 1)), 0.0)


class Best:
    """The image with the largest score so far, for each example.

    Args:
        x: Images (N, ...) that stand in until the first `update`.
    """

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.scores = torch.full((len(x),), -torch.inf, device=x.device)

    def update(self, x: Tensor, scores: Tensor) -> None:
        """Take over the examples whose score (N,) is larger than before; NaN is larger than every number."""
        scores = undefined_first(scores, None)
        better = scores > self.scores
        self.x = torch.where(better.view(-1, *[1] * (x.dim() - 1)), x, self.x)
        self.scores = torch.where(better, scores.to(self.scores.dtype), self.scores)


def radius_text(radius: Radius) -> str:
    """A radius in its usual notation.

    `8/255` and `2.5/255` for gray levels (also 12/255, which reduces to 4/85), `1/2` for other fractions.
    """
    if not isinstance(radius, Fraction) or radius.denominator == 1:
        return str(radius)
    levels = radius * 255
    if levels.denominator == 1:
        return f"{levels}/255"
    # 17 divides 255 and no power of 10: a decimal number of gray levels, and not a reduced decimal fraction.
    decimals = radius.denominator % 17 == 0 and 10**6 % levels.denominator == 0
    return f"{Decimal(levels.numerator) / levels.denominator}/255" if decimals else str(radius)


def _check_eps(eps: Radius, norm: Norm, bounds: Bounds) -> None:
    if isinstance(eps, bool) or not isinstance(eps, int | float | Fraction):
        raise TypeError(f"eps must be a number, but is {eps!r}. Write 8/255 in YAML, Fraction(8, 255) in Python.")
    if not 0 < eps < math.inf:
        raise ValueError(f"eps={eps} is not a perturbation size. Give a positive number such as 8/255.")
    if bounds is not None and eps > _LARGEST_EPS[norm] * (bounds[1] - bounds[0]):
        raise ValueError(
            f"eps={eps} is too large for the {norm} norm of images in [{bounds[0]:g}, {bounds[1]:g}]. "
            f"If it is meant in grey levels, write {float(eps):g}/255."
        )
