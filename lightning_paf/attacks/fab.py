"""The targeted Fast Adaptive Boundary attack."""

from collections import deque
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from lightning_paf.attacks.base import Attack, loss_and_gradient
from lightning_paf.attacks.target import Target
from lightning_paf.functional.geometry import geometry_of
from lightning_paf.functional.hyperplane import shift_of
from lightning_paf.functional.losses import hard_labels
from lightning_paf.functional.predictions import misclassified, undefined
from lightning_paf.types import Forward, Norm, PerExampleLoss, Radius

_ALPHA_MAX = 0.1  # largest weight of the step from the clean image
_ETA = 1.05  # overshoot beyond the linearised boundary
_BETA = 0.9  # fraction of its distance that an adversarial point keeps
_CPU_INTERVAL, _DEVICE_INTERVAL = 1, 10  # most steps between two checks for success, which synchronise a device


class FAB(Attack):
    """FAB in its targeted form (Croce & Hein 2020), as in AutoAttack.

    "Minimally distorted adversarial examples with a fast adaptive boundary attack".

    Every step linearises the boundary towards one target class and projects both the current point and the clean image
    onto it. It moves slightly beyond a mixture of the two; an adversarial point then moves back towards the clean
    image. The targets are the classes ranked second, third, ... at the clean image. There is no randomness.

    A search for one (image, target) is a lane. All lanes of an image end with its first success within `eps`, and
    waiting ones replace them. Images that are misclassified from the start are returned unchanged.

    Where `forward` has a method `exact` (see `SearchModel`), it ranks the targets and confirms every success.

    Args:
        eps: Largest perturbation, in units of pixels in [0, 1]: `8/255`, `0.031`.
        norm: `linf` or `l2`.
        steps: Gradients for each target class.
        targets: Number of target classes; all others, if the model has fewer.
        batch_size: Maximum number of lanes searched at once.
        target: See `Attack`.

    Raises:
        ValueError: `norm` is l1, or `steps`, `targets` or `batch_size` is below 1; see also `Attack`.
    """

    fixed_loss = True
    settings = ("steps", "targets", "batch_size")

    def __init__(
        self,
        eps: Radius = Fraction(8, 255),
        *,
        norm: Norm = "linf",
        steps: int = 100,
        targets: int = 9,
        batch_size: int = 250,
        target: Target = None,
    ) -> None:
        super().__init__(eps, norm=norm, target=target)
        if norm == "l1":
            raise ValueError("norm of FAB must be linf or l2, got 'l1'. Pass ReferenceAutoAttack for l1.")
        self.steps, self.targets, self.batch_size = steps, targets, batch_size
        self.require(steps=1, targets=1, batch_size=1)

    @property
    def label(self) -> str:
        """`fab-t`, as in AutoAttack."""
        return "fab-t"

    def perturb(self, forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
        """Return the first adversarial image of each sample, else the clean image."""
        del loss
        radius = geometry_of(self.norm).fraction_of_radius * self.radius
        search = _Search(self, forward, getattr(forward, "exact", None), x, hard_labels(y), radius)
        search.run(stop_at_success=True)
        return search.x_adv

    @torch.enable_grad()
    def minimum(self, forward: Forward, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest adversarial images found, at any distance, independent of `eps`.

        Args:
            forward: Images to logits; frozen by the caller. Its `exact`, if present, is used throughout.
            x: Images (N, C, H, W) in [0, 1].
            y: Labels (N,).

        Returns:
            Images (N, C, H, W), and their distances (N,) in `norm`: 0 for a misclassified image, infinite where no
            adversarial image was found.
        """
        search = _Search(self, getattr(forward, "exact", forward), None, x.detach(), y, torch.inf)
        search.run(stop_at_success=False)
        return search.x_adv, search.distances


class _Search:
    """Results for each image, and the waiting and running searches of one call.

    Lane `i` searches an image of class `pairs[i, 1]` near image `owners[i]` of class `pairs[i, 0]`. `points[i]` holds
    its current point and its clean image, `nearest[i]` the closest adversarial point so far, at distance `sizes[i]`,
    which is `radius` if there is none.
    """

    def __init__(
        self, attack: FAB, forward: Forward, exact: Forward | None, x: Tensor, y: Tensor, radius: float
    ) -> None:
        self.forward, self.exact = forward, exact
        self.attack, self.radius = attack, x.new_tensor(radius).item()  # as `sizes` hold it
        self.ball, self.shift = geometry_of(attack.norm), shift_of(attack.norm)
        self.shape, self.clean, self.x_adv = x.shape[1:], x.flatten(1), x.clone()
        self.distances = torch.full((len(x),), torch.inf, device=x.device, dtype=x.dtype)
        self.waiting_owners, self.waiting_pairs = self._rank(exact or forward, x, y)
        self.waiting = deque(range(len(self.waiting_owners)))
        self.fooled: set[int] = set()
        self.owners, self.ends = torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long)
        self.pairs, self.sizes = self.waiting_pairs[:0], x.new_empty(0)
        self.points, self.nearest = self.clean.new_empty(0, 2, self.clean.shape[1]), self.clean[:0]

    @torch.no_grad()
    def _rank(self, logits_of: Forward, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Owners (P,), on the host, and pairs (P, 2), sorted by the rank of the target."""
        logits = torch.cat([logits_of(part) for part in torch.split(x, self.attack.batch_size)])
        count = min(self.attack.targets, logits.shape[1] - 1)
        ranked = logits.topk(count + 1, dim=1).indices
        correct = (ranked[:, 0] == y) & ~undefined(logits)
        self.distances[~correct] = 0
        own = correct.nonzero().squeeze(1)
        targets = ranked[own, 1:].t().flatten()
        return own.repeat(count).cpu(), torch.stack((y[own].repeat(count), targets), dim=1)

    def run(self, stop_at_success: bool) -> None:
        """Search until no lane runs and none waits."""
        most = _CPU_INTERVAL if self.clean.is_cpu else _DEVICE_INTERVAL
        tick, every = 0, max(k for k in range(1, most + 1) if self.attack.steps % k == 0)  # lanes end at a check
        self._seat(self._next(), keep=[], end=self.attack.steps)
        while len(self.owners):
            for _ in range(every):
                self._step()
            tick += every
            done = self.ends <= tick
            if stop_at_success:
                done |= self._hits().cpu()
            if done.any():
                self._harvest(done.nonzero().squeeze(1).tolist(), stop_at_success)
                over = zip(done.tolist(), self.owners.tolist(), strict=True)
                keep = [lane for lane, (ended, owner) in enumerate(over) if not ended and owner not in self.fooled]
                self._seat(self._next(len(keep)), keep, end=tick + self.attack.steps)

    def _next(self, running: int = 0) -> list[int]:
        """Indices of the pairs for the free lanes."""
        chosen: list[int] = []
        while self.waiting and running + len(chosen) < self.attack.batch_size:
            pair = self.waiting.popleft()
            if int(self.waiting_owners[pair]) not in self.fooled:
                chosen.append(pair)
        return chosen

    def _seat(self, chosen: list[int], keep: list[int], end: int) -> None:
        """Continue with the lanes `keep` and with new ones for the pairs `chosen`."""
        owners = self.waiting_owners[chosen]
        clean = self.clean[owners.to(self.clean.device)]
        self.owners = torch.cat((self.owners[keep], owners))
        self.ends = torch.cat((self.ends[keep], torch.full((len(chosen),), end)))
        self.pairs = torch.cat((self.pairs[keep], self.waiting_pairs[chosen]))
        self.points = torch.cat((self.points[keep], torch.stack((clean, clean), dim=1)))
        self.nearest = torch.cat((self.nearest[keep], clean))
        self.sizes = torch.cat((self.sizes[keep], torch.full_like(clean[:, 0], self.radius)))

    def _step(self) -> None:
        """Take a step in every lane; store nearer points; move adversarial points back."""
        current, clean = self.points[:, 0], self.points[:, 1]
        values, gradients = loss_and_gradient(self.forward, current.view(-1, *self.shape), self.pairs, _target_margin)
        with torch.no_grad():
            moved = self._move(values, gradients.flatten(1))
            adversarial = misclassified(self.forward(moved.view(-1, *self.shape)), self.pairs[:, 0])
            sizes = self.ball.size(moved - clean)
            self._keep(adversarial & (sizes < self.sizes), moved, sizes)
            weight = 1 - (1 - _BETA) * adversarial.to(clean.dtype).unsqueeze(1)
            current.copy_(torch.lerp(clean, moved, weight))

    def _move(self, values: Tensor, gradients: Tensor) -> Tensor:
        """Next points (n, D), from the margins of the targets (n,) and their gradients."""
        back = self.points[:, 1] - self.points[:, 0]
        excess = torch.stack((values, values + (gradients * back).sum(1)), dim=1)
        shifts = self.shift(self.points, gradients, excess)
        lengths = self.ball.size(shifts.flatten(0, 1)).view(-1, 2).clamp_min_(1e-8)
        alpha = (lengths[:, :1] / lengths.sum(1, keepdim=True)).clamp_max_(_ALPHA_MAX)
        ahead = torch.add(self.points, shifts, alpha=_ETA)
        return torch.lerp(ahead[:, 0], ahead[:, 1], alpha).clamp_(0, 1)

    def _keep(self, closer: Tensor, moved: Tensor, sizes: Tensor) -> None:
        if not closer.is_cpu:
            self.nearest = torch.where(closer.unsqueeze(1), moved, self.nearest)
            self.sizes = torch.where(closer, sizes, self.sizes)
        elif closer.any():  # needs no synchronisation, and few rows change
            self.nearest[closer], self.sizes[closer] = moved[closer], sizes[closer]

    @torch.no_grad()
    def _hits(self) -> Tensor:
        """Lanes with a success (n,); those that the exact model refutes are discarded."""
        hits = self.sizes < self.radius
        if self.exact is not None and hits.any():
            lanes = hits.nonzero().squeeze(1)
            refuted = ~misclassified(self.exact(self.nearest[lanes].view(-1, *self.shape)), self.pairs[lanes, 0])
            self.sizes[lanes[refuted]] = self.radius
            hits[lanes[refuted]] = False
        return hits

    def _harvest(self, done: list[int], stop_at_success: bool) -> None:
        """Store the results of these lanes; of several for one image, the nearest."""
        sizes, owners = self.sizes[done].tolist(), self.owners[done].tolist()
        for size, owner, lane in sorted(zip(sizes, owners, done, strict=True)):
            if size < self.radius and size < float(self.distances[owner]):
                self.x_adv[owner] = self.nearest[lane].view(self.shape)
                self.distances[owner] = size
                if stop_at_success:
                    self.fooled.add(owner)


def _target_margin(logits: Any, pairs: Tensor) -> Tensor:
    """Logit of the target minus that of the label, (n,)."""
    own, target = logits.gather(1, pairs).unbind(1)
    margins: Tensor = target - own
    return margins
