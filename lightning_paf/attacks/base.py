"""Base class of all attacks."""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from lightning_paf.attacks.target import Target, aims, check_classes, check_target, goals_of
from lightning_paf.functional.geometry import Bounds, finite_gradient, geometry_of, per_example
from lightning_paf.functional.losses import cross_entropy, hard_labels, margin
from lightning_paf.functional.predictions import check_labels, known_finite, misclassified, predicted, undefined_first
from lightning_paf.nn.classifier import logits_of
from lightning_paf.nn.modes import Mode, frozen
from lightning_paf.speed.search_model import Precision, SearchModel
from lightning_paf.types import Forward, Norm, PerExampleLoss, Radius

# Far above every published threat model in [0, 1], far below one given in grey levels.
_LARGEST: Mapping[Norm, float] = MappingProxyType({"linf": 1.0, "l2": 50.0, "l1": 1000.0})

_MOST = 1_000_000
"""Largest number of steps, queries, restarts or the like."""
_OUTSIDE = re.compile("out of bounds|smaller than num_classes")
_PIXEL_TOLERANCE = 1e-4  # for rounding errors of interpolating augmentations

call_context: ContextVar[Callable[[], AbstractContextManager[object]]] = ContextVar("call_context", default=nullcontext)
"""Factory of a context manager, such as a stopwatch, entered around each call."""


class Attack(ABC):
    """Adversarial attack: search for a perturbation within `eps` that raises a loss.

    The model is an argument of the call.

    Subclasses implement `perturb`. The call around it handles the model, autograd and the inputs: it restores the
    model's state dict, training flags, `requires_grad` and `.grad`, and works under `torch.no_grad`,
    `torch.inference_mode` and the autocast of the caller.

    Args:
        eps: Largest perturbation, in units of pixels in [0, 1]: `8/255`, `0.031`.
        norm: Norm of the perturbation.
        mode: Mode of the attacked model: `eval`, or `train` with its buffers protected.
        bounds: Smallest and largest pixel value; null for unbounded inputs.
        loss: Default of the loss to increase, `(output, target) -> (N,)`; null for cross-entropy.
        fold: False attacks the model itself, never a folded copy of it. Slower, and equal up to rounding.
        target: Class to reach, or a list with that of each label; null for an untargeted attack. Only images that are
            classified as their target count as successes. Images of their target class are returned unchanged.

    Raises:
        TypeError: `eps` is not a number.
        ValueError: `eps` is not positive, or so large that it must be grey levels; unknown norm or mode; empty bounds;
            a target that is no class, or the label itself.
    """

    fixed_loss: bool = False
    """Whether the attack has its own losses; calls then reject `loss` and `forward`."""

    settings: ClassVar[tuple[str, ...]] = ()
    """Names of the attributes that `describe` adds to the threat model."""

    def __init__(
        self,
        eps: Radius = Fraction(8, 255),
        *,
        norm: Norm = "linf",
        mode: Mode = "eval",
        bounds: Bounds = (0.0, 1.0),
        loss: PerExampleLoss | None = None,
        fold: bool = True,
        target: Target = None,
    ) -> None:
        check_target(target)
        geometry_of(norm)  # raises for an unknown norm
        if mode not in ("eval", "train"):
            raise ValueError(f"mode must be eval or train, got {mode!r}. Pass eval unless the method requires train.")
        if bounds is not None and not bounds[0] < bounds[1]:
            raise ValueError(f"bounds must be increasing, got {bounds}. Pass [0, 1], or null for none.")
        _check_length("eps", eps, norm, bounds)
        self.eps = eps
        self.norm = norm
        self.mode = mode
        self.bounds = bounds
        self.loss = loss
        self.fold = fold
        self.target = target
        self._seen_pixels = False

    @property
    def radius(self) -> float:
        """Largest distance of a result from its image in `norm`; by default `eps`."""
        return float(self.eps)

    @property
    def label(self) -> str:
        """Short name for tables and records, such as `pgd` or `apgd-ce`."""
        return type(self).__name__.lower()

    def sub_attacks(self) -> "tuple[Attack, ...]":
        """Attacks that an evaluation runs in turn, each on the remaining robust examples.

        By default the attack itself. An ensemble returns its members, which are seeded and recorded separately.
        """
        return (self,)

    def for_classes(self, classes: int) -> "Attack":
        """The attack on a model with this number of classes; by default the attack itself.

        An ensemble leaves out members that need more.

        Raises:
            ValueError: The target is none of the classes, or a list of another length.
        """
        check_classes(self.target, classes)
        return self

    @property
    def aims_by_loss(self) -> bool:
        """Whether the loss of the target is decreased, instead of using `TowardTarget`."""
        return not self.fixed_loss

    def succeeded(self, logits: Tensor, y: Tensor) -> Tensor:
        """Mask (N,) of the misclassified images, or of those classified as their target."""
        if self.target is None:
            return misclassified(logits, y)
        goals = goals_of(self.target, hard_labels(y))
        return (predicted(logits) == goals) & (goals != hard_labels(y))

    def check_pixels(self, x: Tensor) -> None:
        """Check that images (N, C, H, W) are inside `bounds`."""
        if self.bounds is not None and x.numel() > 0:
            low, high = (limit.item() for limit in x.aminmax())
            if not (low >= self.bounds[0] - _PIXEL_TOLERANCE and high <= self.bounds[1] + _PIXEL_TOLERANCE):
                raise ValueError(
                    f"Pixels must lie in [{self.bounds[0]:g}, {self.bounds[1]:g}] for {type(self).__name__}, got "
                    f"[{low:g}, {high:g}]. Pass images in this range; normalisation belongs inside the model."
                )

    def search_model(self, model: nn.Module, precision: Precision = "fp32") -> SearchModel:
        """The model, with its fast path, for searches by this attack."""
        return SearchModel(model, precision, fold=self.fold)

    def describe(self) -> dict[str, Any]:
        """The threat model and the settings as plain values, for result files.

        Without `loss` where the attack has its own, and with `fold` only where it is off.
        """
        described: dict[str, Any] = {
            "attack": type(self).__name__,
            "norm": self.norm,
            "eps": radius_text(self.eps),
            "eps_value": float(self.eps),
            "mode": self.mode,
            "bounds": None if self.bounds is None else list(self.bounds),
        }
        if self.loss is not None or not self.fixed_loss:
            described["loss"] = getattr(self.loss or cross_entropy, "__name__", type(self.loss).__name__)
        described |= {name: getattr(self, name) for name in self.settings}
        described |= {} if self.target is None else {"target": self.target}
        return described if self.fold else {"fold": False, **described}

    def require(self, **least: float) -> None:
        """Check that attributes have at least these values: `self.require(steps=1)`.

        No number may exceed a million.
        """
        for name, bound in least.items():
            if not (value := getattr(self, name)) >= bound:
                raise ValueError(f"{name} must be at least {bound}, got {value}. Pass {name}={bound} or more.")
            if value > _MOST:
                raise ValueError(f"{name} must be at most {_MOST}, got {value}. Pass a smaller {name}.")

    def require_positive(self, *names: str) -> None:
        """Check that attributes are positive and finite, or None."""
        for name in names:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value}. Pass another {name}.")

    def require_length(self, name: str) -> None:
        """Check that an attribute is a length in units of pixels, like `eps`."""
        _check_length(name, getattr(self, name), self.norm, self.bounds)

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
            model: Model to freeze during the attack, and to call unless `forward` is given.
            x: Images (N, C, H, W), floating point, inside `bounds`. Not modified.
            y: Target of the loss: labels (N,), a distribution (N, C), a clean image. Not modified.
            loss: Loss to increase, `(output, y) -> (N,)`. Default: the attack's own loss, else cross-entropy.
            forward: Function to attack. Default: `model` itself, or its `fast_forward` where it has one.

        Returns:
            Perturbed images, shaped like `x`, without a graph.

        Raises:
            ValueError: Pixels outside `bounds`; `y` that is not labels, where no `loss` is given. Checked in every
                call on the CPU; elsewhere in the first call only, since the check synchronises the device. On the CPU,
                a label that is no class of the model.
        """
        if self.fixed_loss and (loss is not None or forward is not None):
            raise ValueError(
                f"loss and forward must be left out for {type(self).__name__}, which has its own losses; got a custom "
                "loss or forward. Pass neither, or use PGD."
            )
        with call_context.get()(), self._ready(model):
            x, y = self._own(x, y if loss is None else None), y.detach().clone()
            if len(x) == 0:
                return x
            path = forward or self._path(model)
            if forward is None:
                self._check_classes(path, x)
            try:
                return self._aimed(path, x, y, loss or self.loss or cross_entropy).detach()
            except (IndexError, RuntimeError) as error:
                if loss is None and _OUTSIDE.search(str(error)):  # torch's error of a label outside the classes
                    check_labels(y, len(x), logits_of(path(x[:1])).shape[1])
                raise

    @abstractmethod
    def perturb(self, forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
        """Compute perturbed images of a frozen model, with gradients enabled.

        `x` and `y` are copies.
        """

    def _aimed(self, forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
        """`perturb`, towards the target of each image if there is one."""
        if self.target is None:
            return self.perturb(forward, x, y, loss)
        labels = hard_labels(y)
        if self.aims_by_loss:
            goals = goals_of(self.target, labels)
            x_adv = self.perturb(forward, x, goals, lambda output, goal: -loss(output, goal))
            return torch.where(per_example(goals == labels, x), x, x_adv)
        x_adv = x.clone()
        for rows, toward, others in aims(forward, labels, self.target):
            x_adv[rows] = self.perturb(toward, x[rows], others, margin)
        return x_adv

    @torch.no_grad()
    def _check_classes(self, forward: Forward, x: Tensor) -> None:
        """Check the target by the outputs for two images."""
        if self.target is not None:
            check_classes(self.target, logits_of(forward(x[:2])).shape[1])

    def _path(self, model: nn.Module) -> Forward:
        """The model or, in eval mode and without `fixed_loss`, its `fast_forward`."""
        fast = getattr(model, "fast_forward", None)
        if fast is None or self.mode != "eval" or self.fixed_loss or not self.fold:
            return model
        refreshed: Forward = fast.refresh()
        return refreshed

    @contextmanager
    def _ready(self, model: nn.Module) -> Iterator[None]:
        """Leave inference mode, which has no gradients; enable them; freeze the model."""
        with torch.inference_mode(False), torch.enable_grad(), frozen(model, self.mode):
            yield

    def _own(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """Check images and labels; return a copy of the images.

        Autograd cannot save an inference tensor.
        """
        if not x.is_floating_point():
            raise ValueError(f"Images must be floating point, got {x.dtype}. Divide uint8 images by 255.")
        x = x.detach().clone()
        known = self._seen_pixels and x.device.type != "cpu"
        if labels is not None and not known:
            check_labels(labels, len(x))
        if not known:
            self.check_pixels(x)
            self._seen_pixels = self.bounds is not None and len(x) > 0
        return x


def loss_and_gradient(forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> tuple[Tensor, Tensor]:
    """Loss per example (N,) at `x` and its gradient, both detached.

    The gradient is that of the sum, which is independent of the batch size and, in half precision, underflows later
    than that of the mean. Where output or loss are undefined, the loss is infinite and the gradient zero, so that an
    attack stays there. Elsewhere gradients are finite, see `finite_gradient`.

    Raises:
        ValueError: The loss does not return one value per example.
    """
    output, values, gradient = raw_gradient(forward, x, y, loss)
    if known_finite(output, values, gradient):  # the usual case, in which the rest changes nothing
        return values, gradient
    values = undefined_first(values, output)
    return values, unless_infinite(values, finite_gradient(gradient))


def raw_gradient(forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> tuple[Any, Tensor, Tensor]:
    """Output, loss (N,) and gradient as returned by autograd, possibly with NaN."""
    x = x.detach().requires_grad_()
    output = forward(x)
    values = loss(output, y)
    if values.shape != x.shape[:1]:
        raise ValueError(
            f"The loss of an attack must return one value per example, shape ({len(x)},), got shape "
            f"{tuple(values.shape)}. Pass reduction='none', and average over everything but the first dimension."
        )
    (gradient,) = torch.autograd.grad(values, x, torch.ones_like(values))  # that of the sum
    return output, values.detach(), gradient


@torch.no_grad()
def loss_at(forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
    """The loss per example (N,) at `x`, infinite where output or loss are undefined."""
    output = forward(x)
    return undefined_first(loss(output, y), output)


def unless_infinite(values: Tensor, steps: Tensor) -> Tensor:
    """Steps (N, ...), set to zero for images with an infinite loss (N,)."""
    return steps.masked_fill(per_example(values == torch.inf, steps), 0.0)


class Best:
    """Image with the largest score so far per example; `x` before any `update`."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.scores = torch.full((len(x),), -torch.inf, device=x.device)

    def update(self, x: Tensor, scores: Tensor) -> None:
        """Store the examples whose score (N,) has increased; NaN is the largest score."""
        scores = undefined_first(scores, None)
        better = scores > self.scores
        self.x = torch.where(per_example(better, x), x, self.x)
        self.scores = torch.where(better, scores.to(self.scores.dtype), self.scores)


def radius_text(radius: Radius) -> str:
    """Radius in its usual notation: `8/255`, `2.5/255`; `1/2` if not in grey levels."""
    if not isinstance(radius, Fraction) or radius.denominator == 1:
        return str(radius)
    levels = radius * 255
    if levels.denominator == 1:
        return f"{levels}/255"
    # 17 divides 255 but no power of 10: a decimal number of grey levels, not a reduced decimal fraction.
    decimals = radius.denominator % 17 == 0 and 10**6 % levels.denominator == 0
    return f"{Decimal(levels.numerator) / levels.denominator}/255" if decimals else str(radius)


def _check_length(name: str, value: Radius, norm: Norm, bounds: Bounds) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | Fraction):
        raise TypeError(f"{name} must be a number, got {value!r}. Pass 8/255 in YAML, Fraction(8, 255) in Python.")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}. Pass a perturbation size such as 8/255.")
    if bounds is not None and value > _LARGEST[norm] * (bounds[1] - bounds[0]):
        raise ValueError(
            f"{name} must be at most {_LARGEST[norm]:g} times the pixel range in {norm}, got {value} for images in "
            f"[{bounds[0]:g}, {bounds[1]:g}]. Pass {float(value):g}/255 for grey levels."
        )
