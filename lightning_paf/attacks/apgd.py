"""Auto-PGD, on batches that are refilled during the search."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from itertools import count
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lightning_paf.attacks.base import Attack
from lightning_paf.attacks.target import Target
from lightning_paf.functional.geometry import finite_gradient, geometry_of, per_example
from lightning_paf.functional.losses import cross_entropy, dlr, hard_labels, margin
from lightning_paf.functional.predictions import misclassified, undefined
from lightning_paf.types import Forward, Norm, PerExampleLoss, Radius

SearchLoss = Literal["ce", "dlr", "dlr-targeted"]

_LABELS: Mapping[SearchLoss, str] = MappingProxyType({"ce": "apgd-ce", "dlr": "apgd-dlr", "dlr-targeted": "apgd-t"})
FEWEST_CLASSES: Mapping[SearchLoss, int] = MappingProxyType({"ce": 2, "dlr": 3, "dlr-targeted": 4})
_MOMENTUM = 0.75  # alpha of eq. (3.1)
_RHO = 0.75  # fraction of rising steps below which the step size is halved
_CPU_INTERVAL, _DEVICE_INTERVAL = 1, 10  # iterations between two checks for success, which synchronise a device


class APGD(Attack):
    """PGD with momentum and an adaptive step size (Croce & Hein 2020).

    It starts on the sphere of radius `eps` with a step size of `2 eps`, and checks at 22 %, 41 %, 57 %, ... of its
    steps. It halves the step size and restarts from the best image where fewer than three quarters of the steps since
    the last check raised the loss, or where the best loss did not change between two checks without a halving. The
    search for an image ends at its first misclassified image. Images without a success are returned unchanged.

    The search runs up to `batch_size` lanes, each one image with one target. A waiting pair replaces a lane that ends;
    all lanes of an image end with its first success. Where `forward` has a method `exact` (see `SearchModel`), it
    confirms every success. The result is a function of images, labels, generator state, model and `batch_size`.

    Args:
        eps: Largest perturbation, in units of pixels in [0, 1]: `8/255`, `0.031`.
        norm: `linf` or `l2`.
        search_loss: `ce` is the cross-entropy, `dlr` the difference-of-logits ratio (3 classes or more),
            `dlr-targeted` its targeted form (4 classes or more).
        steps: Steps from every start, after one forward pass at the start.
        targets: With `dlr-targeted`: number of target classes, in the order of the clean logits, at most all others.
        restarts: Random starts for every target.
        eot: Gradients averaged in every step, for randomised models.
        batch_size: Lanes searched at once.
        target: See `Attack`; the loss is then the margin of the target, with `search_loss=ce`.

    Raises:
        ValueError: `norm` is l1, `search_loss` is unknown, or a number is below 1; `target` with another
            `search_loss`; see also `Attack`. In the call:
            `loss` or `forward` is given, or the model has too few classes for the loss.
    """

    fixed_loss = True
    settings = ("search_loss", "steps", "restarts", "eot", "batch_size")

    def __init__(
        self,
        eps: Radius = Fraction(8, 255),
        *,
        norm: Norm = "linf",
        search_loss: SearchLoss = "ce",
        steps: int = 100,
        targets: int = 9,
        restarts: int = 1,
        eot: int = 1,
        batch_size: int = 250,
        target: Target = None,
    ) -> None:
        if norm == "l1":
            raise ValueError("norm of APGD must be linf or l2, got 'l1'. Pass ReferenceAutoAttack for l1.")
        super().__init__(eps, norm=norm, target=target)
        if search_loss not in get_args(SearchLoss):
            raise ValueError(
                f"search_loss must be one of {', '.join(_LABELS)}, got {search_loss!r}. Pass search_loss=ce."
            )
        if target is not None and search_loss != "ce":
            raise ValueError(f"search_loss must be ce with a target, got {search_loss}. Pass one of the two.")
        self.search_loss, self.steps, self.targets = search_loss, steps, targets
        self.restarts, self.eot, self.batch_size = restarts, eot, batch_size
        self.require(steps=1, targets=1, restarts=1, eot=1, batch_size=1)

    @property
    def label(self) -> str:
        """`apgd-ce`, `apgd-dlr` or `apgd-t`."""
        return _LABELS[self.search_loss]

    def describe(self) -> dict[str, Any]:
        """The threat model and the settings as plain values, for result files."""
        described = super().describe() | ({} if self.target is None else {"search_loss": "margin"})
        return described | ({"targets": self.targets} if self.search_loss == "dlr-targeted" else {})

    def perturb(self, forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
        """Search from random starts."""
        del loss
        return self.search(forward, x, hard_labels(y))

    def search(
        self, forward: Forward, x: Tensor, y: Tensor, start: Tensor | None = None, nearest: Tensor | None = None
    ) -> Tensor:
        """Search as `perturb` does, from given starts.

        Args:
            forward: Images to logits; its model is frozen and gradients are enabled, as in `perturb`.
            x: Images (N, C, H, W).
            y: Labels (N,).
            start: First start (N, C, H, W) for each target; projected onto the ball.
            nearest: Receives the image (N, C, H, W) with the largest loss of each last search without success.
        """
        waiting = _Waiting(self, x, self._target_classes(forward, x, y), start)
        windows, check_every = check_windows(self.steps), _CPU_INTERVAL if x.is_cpu else _DEVICE_INTERVAL
        x_adv, robust = x.clone(), torch.ones(len(x), dtype=torch.bool)
        lanes = waiting.take(0, robust)
        for iteration in count():
            lanes = lanes.joined(waiting.take(self.batch_size - len(lanes), robust))
            if len(lanes) == 0:
                break
            self._evaluate(forward, lanes, y[lanes.sample])
            lanes.adapt(windows[lanes.age])
            ended = lanes.age == self.steps
            if nearest is not None and bool(ended.any()):
                rows = ended.nonzero().squeeze(1).to(x.device)
                nearest[lanes.sample[rows]] = lanes.best_x[rows]
            if iteration % check_every == 0 or bool(ended.any()):
                self._harvest(forward, lanes, x, y, x_adv, robust)
                lanes = lanes.picked(robust[lanes.sample.cpu()] & ~ended)
            self._move(lanes, x[lanes.sample])
        return x_adv

    def move_inside(self, moved: Tensor, x: Tensor) -> Tensor:
        """Project `moved` onto the ball around `x`, then onto the pixel range."""
        delta = geometry_of(self.norm).project(moved - x, float(self.eps))
        return delta.add_(x).clamp_(0, 1)

    def _evaluate(self, forward: Forward, lanes: "_Lanes", y: Tensor) -> None:
        """Compute losses and mean gradients over `eot` passes at the current images."""
        total = torch.zeros_like(lanes.x)
        for _ in range(self.eot):
            x = lanes.x.detach().requires_grad_()
            logits = forward(x)
            untargeted = _LOSSES[self.search_loss]
            loss = untargeted(logits, y, lanes.target) if self.target is None else margin(logits, y)
            total += torch.autograd.grad(loss.sum(), x)[0]
        lanes.gradient = finite_gradient(total.div_(self.eot))
        # Undefined logits are a success; where the exact model refutes it, the image must not count as the best.
        lanes.record(loss.detach().masked_fill(undefined(logits), -torch.inf), misclassified(logits, y))

    def _move(self, lanes: "_Lanes", x: Tensor) -> None:
        """Take one step in every lane, with momentum from its second step (eq. 3.1)."""
        direction = geometry_of(self.norm).ascent(lanes.gradient, lanes.x, self.bounds)
        ahead = self.move_inside(lanes.x + per_example(lanes.step_size, x) * direction, x)
        weight = per_example(lanes.weight, x)
        moved = lanes.x + weight * (ahead - lanes.x) + (1 - weight) * (lanes.x - lanes.previous)
        lanes.previous, lanes.x = lanes.x, self.move_inside(moved, x)
        lanes.weight = torch.full_like(lanes.weight, _MOMENTUM)
        lanes.age = lanes.age + 1

    @torch.no_grad()
    def _harvest(self, forward: Forward, lanes: "_Lanes", x: Tensor, y: Tensor, x_adv: Tensor, robust: Tensor) -> None:
        """Collect the candidates of the lanes, and keep those that are confirmed."""
        rows = lanes.fooled.nonzero().squeeze(1)
        lanes.fooled = torch.zeros_like(lanes.fooled)
        if len(rows) == 0:
            return
        first = {sample: row for row, sample in reversed(list(enumerate(lanes.sample[rows].tolist())))}
        samples = torch.tensor(list(first), device=x.device)
        found = lanes.found[rows[list(first.values())]]
        found = geometry_of(self.norm).move(x[samples], found - x[samples], float(self.eps), self.bounds)
        confirmed = misclassified(getattr(forward, "exact", forward)(found), y[samples])
        x_adv[samples[confirmed]] = found[confirmed]
        robust[samples[confirmed].cpu()] = False

    @torch.no_grad()
    def _target_classes(self, forward: Forward, x: Tensor, y: Tensor) -> Tensor:
        """Target classes (N, T), the most likely first; `y` for untargeted losses."""
        if self.search_loss != "dlr-targeted":
            return y[:, None]
        logits = torch.cat([forward(part) for part in torch.split(x, self.batch_size)])
        classes = logits.shape[1]
        if classes < FEWEST_CLASSES[self.search_loss]:
            raise ValueError(
                f"The number of classes must be at least 4 for the targeted DLR loss, got a model with {classes} "
                "outputs. Pass search_loss=ce."
            )
        others = logits.scatter(1, y[:, None], -torch.inf)
        return others.topk(min(self.targets, classes - 1), dim=1).indices


def check_windows(steps: int) -> Tensor:
    """Number of steps that the check after 0 ... `steps` steps covers; 0 for no check.

    The first check is after 22 % of the steps; each interval is 3 % shorter than the one before, but at least 6 %.
    """
    window, shrink, least = (max(int(fraction * steps), 1) for fraction in (0.22, 0.03, 0.06))
    windows, done = torch.zeros(steps + 1, dtype=torch.int64), 0
    while done + window <= steps:
        done += window
        windows[done] = window
        window = max(window - shrink, least)
    return windows


def _targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Targeted DLR loss (Croce & Hein 2020, eq. 7).

    `(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2)` with the sorted logits `z_(i)`.
    """
    top = logits.topk(4, dim=1).values
    own, goal = (logits.gather(1, labels[:, None]).squeeze(1) for labels in (y, target))
    return (goal - own) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


_LOSSES: Mapping[SearchLoss, Callable[[Tensor, Tensor, Tensor], Tensor]] = MappingProxyType(
    {
        "ce": lambda logits, y, _: cross_entropy(logits, y),
        "dlr": lambda logits, y, _: dlr(logits, y),
        "dlr-targeted": _targeted_dlr,
    }
)


@dataclass
class _Lanes:
    """The searches in progress, one row each."""

    sample: Tensor  # index of the image
    target: Tensor  # target class
    age: Tensor  # steps done; on the CPU, so that reading it does not synchronise the device
    x: Tensor  # current image
    previous: Tensor  # image before the last step
    gradient: Tensor  # gradient of the loss at `x`
    best_x: Tensor  # image with the largest loss so far
    best_gradient: Tensor  # gradient there
    found: Tensor  # last candidate since the last check for success
    step_size: Tensor  # length of a step
    weight: Tensor  # weight of the new step in the move; the rest repeats the last move
    best_loss: Tensor  # largest loss so far
    last_loss: Tensor  # loss before the last step; 0 before the first, as in the published code
    checked_loss: Tensor  # `best_loss` at the last check
    rises: Tensor  # steps since the last check that raised the loss
    halved: Tensor  # whether the last check halved the step size; true before the first
    fooled: Tensor  # whether `found` holds an image

    @classmethod
    def at(cls, x: Tensor, sample: Tensor, target: Tensor, step_size: float) -> "_Lanes":
        """New lanes at images (B, C, H, W)."""
        zeros = x.new_zeros(len(x), dtype=torch.float32)
        lowest = torch.full_like(zeros, -torch.inf)
        age = torch.zeros(len(x), dtype=torch.int64)
        images = dict.fromkeys(("x", "previous", "gradient", "best_x", "best_gradient", "found"), x)
        losses = {"best_loss": lowest, "last_loss": zeros, "checked_loss": lowest, "rises": zeros}
        flags = {"halved": zeros == 0, "fooled": zeros != 0}
        step_sizes = {"step_size": torch.full_like(zeros, step_size), "weight": zeros + 1}
        return cls(sample=sample, target=target, age=age, **images, **losses, **flags, **step_sizes)

    def __len__(self) -> int:
        return len(self.age)

    def picked(self, keep: Tensor) -> "_Lanes":
        """The lanes where `keep` (B,), on the CPU, is true."""
        if bool(keep.all()):
            return self
        rows = keep.nonzero().squeeze(1)
        on_device = rows.to(self.x.device)
        return _Lanes(**{name: value[rows if name == "age" else on_device] for name, value in self._items()})

    def joined(self, new: "_Lanes") -> "_Lanes":
        """These lanes and others."""
        if len(new) == 0:
            return self
        return _Lanes(**{name: torch.cat([value, getattr(new, name)]) for name, value in self._items()})

    def record(self, loss: Tensor, wrong: Tensor) -> None:
        """Record the loss (B,) at the current image, and whether it is misclassified (B,)."""
        self.found = torch.where(per_example(wrong, self.x), self.x, self.found)
        self.fooled = self.fooled | wrong
        better = loss > self.best_loss
        self.best_x = torch.where(per_example(better, self.x), self.x, self.best_x)
        self.best_gradient = torch.where(per_example(better, self.x), self.gradient, self.best_gradient)
        self.best_loss = torch.where(better, loss, self.best_loss)
        self.rises = self.rises + (loss > self.last_loss)
        self.last_loss = loss
        fresh = self.age == 0
        if bool(fresh.any()):
            fresh = fresh.to(loss.device)
            self.rises, self.last_loss = (torch.where(fresh, 0.0, value) for value in (self.rises, self.last_loss))
            self.checked_loss = torch.where(fresh, loss, self.checked_loss)

    def adapt(self, window: Tensor) -> None:
        """Halve the step size of stalled searches and restart them from their best image.

        Args:
            window: Steps that this check covers (B,), on the CPU; 0 for no check.
        """
        if not bool(window.any()):
            return
        window = window.to(self.x.device)
        stuck = ~self.halved & (self.checked_loss >= self.best_loss)
        checked = window > 0
        halve = checked & ((self.rises <= _RHO * window) | stuck)
        self.step_size = torch.where(halve, self.step_size / 2, self.step_size)
        self.x = torch.where(per_example(halve, self.x), self.best_x, self.x)
        self.gradient = torch.where(per_example(halve, self.x), self.best_gradient, self.gradient)
        self.halved = torch.where(checked, halve, self.halved)
        self.checked_loss = torch.where(checked, self.best_loss, self.checked_loss)
        self.rises = torch.where(checked, 0.0, self.rises)

    def _items(self) -> list[tuple[str, Tensor]]:
        return [(field.name, getattr(self, field.name)) for field in fields(self)]


class _Waiting:
    """Queue of searches: all images with their first target, then with their second.

    The starts of a round are drawn for all images at once from a separate generator, so that they depend neither on
    earlier successes nor on random numbers drawn by the model. The classes `targets` (N, T) are ordered; `start`
    (N, C, H, W) is the first start for each target.
    """

    pending: Tensor
    starts: Tensor
    target: Tensor

    def __init__(self, attack: APGD, x: Tensor, targets: Tensor, start: Tensor | None) -> None:
        self.attack, self.x, self.start = attack, x, start
        self.rounds = [
            (targets[:, rank], again) for rank in range(targets.shape[1]) for again in range(attack.restarts)
        ]
        self.generator = torch.Generator(x.device).manual_seed(int(torch.randint(2**62, ())))
        self._open_round()

    def take(self, most: int, robust: Tensor) -> _Lanes:
        """At most `most` new lanes, for robust images (N,), on the CPU."""
        lanes = self._lanes(self.pending[:0])
        while len(lanes) < most and self.rounds:
            self.pending = self.pending[robust[self.pending]]
            chosen, self.pending = self.pending.tensor_split([most - len(lanes)])
            lanes = lanes.joined(self._lanes(chosen))
            if len(self.pending) == 0:
                self.rounds.pop(0)
                self._open_round()
        return lanes

    def _open_round(self) -> None:
        self.pending = torch.arange(len(self.x) if self.rounds else 0)
        if not self.rounds:
            return
        self.target, again = self.rounds[0]
        drawn = self._drawn()
        self.starts = drawn if self.start is None or again else self.start

    def _drawn(self) -> Tensor:
        """Random points on the sphere."""
        options = {"generator": self.generator, "device": self.x.device, "dtype": self.x.dtype}
        noise = _NOISE[self.attack.norm](self.x.shape, **options)
        size = geometry_of(self.attack.norm).size(noise).clamp_min(1e-12)
        return self.x + noise * per_example(float(self.attack.eps) / size, self.x)

    def _lanes(self, chosen: Tensor) -> _Lanes:
        rows = chosen.to(self.x.device)
        start = self.attack.move_inside(self.starts[rows], self.x[rows])
        return _Lanes.at(start, rows, self.target[rows], 2 * float(self.attack.eps))


_NOISE: Mapping[Norm, Callable[..., Tensor]] = MappingProxyType(
    {"linf": lambda shape, **options: 2 * torch.rand(shape, **options) - 1, "l2": torch.randn}
)
