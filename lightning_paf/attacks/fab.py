"""The targeted Fast Adaptive Boundary attack."""

from collections import deque
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from lightning_paf.attacks.base import Attack, loss_and_gradient
from lightning_paf.functional.geometry import geometry_of
from lightning_paf.functional.hyperplane import shift_of
from lightning_paf.functional.losses import hard_labels
from lightning_paf.functional.predictions import misclassified, undefined
from lightning_paf.types import Forward, Norm, PerExampleLoss, Radius

_ALPHA_MAX = 0.1  # largest share of the step from the clean image
_ETA = 1.05  # how far a step goes beyond the linearised boundary
_BETA = 0.9  # how much of its distance an adversarial point keeps

_PATIENCE = 10
"""Steps between two looks at what was found, where looking makes the host wait for the device."""


class FAB(Attack):
    """FAB in its targeted form (Croce & Hein 2020, "Minimally distorted adversarial examples"; as in AutoAttack).

    Every step linearises the boundary towards one target class, projects both the current point and the clean image
    onto it, and goes a little beyond a mixture of the two; a point that is adversarial is drawn back towards the clean
    image. The targets are the classes ranked second, third, ... at the clean image. There is no randomness.

    A search for one (image, target) is a lane. An image leaves with all its lanes at its first success within `eps`,
    and waiting lanes take the places. Images that are misclassified from the start are returned unchanged.

    A `forward` may carry `forward.exact`, the logits of the model without shortcuts: it then ranks the targets, and no
    success counts before it confirms it; an unconfirmed one goes on searching.

    Args:
        eps: Largest perturbation, in units of pixels in [0, 1]: `8/255`, `0.031`.
        norm: `linf` or `l2`.
        steps: Gradients for each target class.
        targets: Number of target classes; all others, if the model has fewer.
        batch_size: Most lanes at once.

    Raises:
        ValueError: As for every attack; norm l1; no step, target or lane.
    """

    fixed_loss = True

    def __init__(
        self,
        eps: Radius = Fraction(8, 255),
        *,
        norm: Norm = "linf",
        steps: int = 100,
        targets: int = 9,
        batch_size: int = 250,
    ) -> None:
        super().__init__(eps, norm=norm)
        if norm == "l1":
            raise ValueError("FAB works in linf and l2, not in l1. Use ReferenceAutoAttack for l1.")
        for name, value in (("steps", steps), ("targets", targets), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1. AutoAttack uses 100 steps and 9 targets.")
        self.steps = steps
        self.targets = targets
        self.batch_size = batch_size

    @property
    def label(self) -> str:
        """The name that AutoAttack gives it."""
        return "fab-t"

    def describe(self) -> dict[str, Any]:
        """The threat model and the settings as plain values, for result files."""
        own = {"steps": self.steps, "targets": self.targets, "batch_size": self.batch_size}
        return {key: value for key, value in super().describe().items() if key != "loss"} | own

    def perturb(self, forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
        """The first adversarial image within `eps` of each, or the image itself."""
        del loss
        radius = geometry_of(self.norm).share_of_radius * self.radius
        search = _Search(self, forward, getattr(forward, "exact", None), x, hard_labels(y), radius)
        search.run(stop_at_success=True)
        return search.x_adv

    @torch.enable_grad()
    def minimum(self, forward: Forward, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest adversarial images of the whole search, at any distance; `eps` plays no role.

        Args:
            forward: Images to logits; frozen by the caller. Its `exact`, if there is one, is used throughout.
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
    """One call: what was found for each image, the (image, target) pairs that wait, and the lanes that run.

    Lane `i` looks for an image of class `pairs[i, 1]` near image `owners[i]` of class `pairs[i, 0]`. `points[i]` holds
    its current point and its clean image, `nearest[i]` the closest adversarial point so far, at `sizes[i]`, where
    `radius` stands for none.
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
        self.fallen: set[int] = set()
        self.owners, self.ends = torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long)
        self.pairs, self.sizes = self.waiting_pairs[:0], x.new_empty(0)
        self.points, self.nearest = self.clean.new_empty(0, 2, self.clean.shape[1]), self.clean[:0]

    @torch.no_grad()
    def _rank(self, logits_of: Forward, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Owners (P,), on the host, and pairs (P, 2) to search: all images with the likeliest target come first."""
        logits = torch.cat([logits_of(part) for part in torch.split(x, self.attack.batch_size)])
        count = min(self.attack.targets, logits.shape[1] - 1)
        ranked = logits.topk(count + 1, dim=1).indices
        correct = (ranked[:, 0] == y) & ~undefined(logits)
        self.distances[~correct] = 0
        own = correct.nonzero().squeeze(1)
        targets = ranked[own, 1:].t().flatten()
        return own.repeat(count).cpu(), torch.stack((y[own].repeat(count), targets), dim=1)

    def run(self, stop_at_success: bool) -> None:
        """Until no lane runs and none waits."""
        tick, every = 0, _patience(self.clean, self.attack.steps)
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
                keep = [lane for lane, (ended, owner) in enumerate(over) if not ended and owner not in self.fallen]
                self._seat(self._next(len(keep)), keep, end=tick + self.attack.steps)

    def _next(self, running: int = 0) -> list[int]:
        """Pairs for the free lanes."""
        chosen: list[int] = []
        while self.waiting and running + len(chosen) < self.attack.batch_size:
            pair = self.waiting.popleft()
            if int(self.waiting_owners[pair]) not in self.fallen:
                chosen.append(pair)
        return chosen

    def _seat(self, chosen: list[int], keep: list[int], end: int) -> None:
        """Go on with the lanes `keep` and with new ones for the pairs `chosen`."""
        owners = self.waiting_owners[chosen]
        clean = self.clean[owners.to(self.clean.device)]
        self.owners = torch.cat((self.owners[keep], owners))
        self.ends = torch.cat((self.ends[keep], torch.full((len(chosen),), end)))
        self.pairs = torch.cat((self.pairs[keep], self.waiting_pairs[chosen]))
        self.points = torch.cat((self.points[keep], torch.stack((clean, clean), dim=1)))
        self.nearest = torch.cat((self.nearest[keep], clean))
        self.sizes = torch.cat((self.sizes[keep], torch.full_like(clean[:, 0], self.radius)))

    def _step(self) -> None:
        """Take a step in every lane; keep what is adversarial and nearer than before; draw adversarial points back."""
        current, clean = self.points[:, 0], self.points[:, 1]
        values, gradients = loss_and_gradient(self.forward, current.view(-1, *self.shape), self.pairs, _lead)
        with torch.no_grad():
            moved = self._move(values, gradients.flatten(1))
            adversarial = misclassified(self.forward(moved.view(-1, *self.shape)), self.pairs[:, 0])
            sizes = self.ball.size(moved - clean)
            self._keep(adversarial & (sizes < self.sizes), moved, sizes)
            share = 1 - (1 - _BETA) * adversarial.to(clean.dtype).unsqueeze(1)
            current.copy_(torch.lerp(clean, moved, share))

    def _move(self, values: Tensor, gradients: Tensor) -> Tensor:
        """The next points (n, D), from the lead of the target (n,) and its gradient (n, D) at the current ones."""
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
        elif closer.any():  # asking costs nothing here, and few rows change
            self.nearest[closer], self.sizes[closer] = moved[closer], sizes[closer]

    @torch.no_grad()
    def _hits(self) -> Tensor:
        """Lanes with a success (n,); one that the exact model does not confirm is forgotten."""
        hits = self.sizes < self.radius
        if self.exact is not None and hits.any():
            lanes = hits.nonzero().squeeze(1)
            refuted = ~misclassified(self.exact(self.nearest[lanes].view(-1, *self.shape)), self.pairs[lanes, 0])
            self.sizes[lanes[refuted]] = self.radius
            hits[lanes[refuted]] = False
        return hits

    def _harvest(self, done: list[int], stop_at_success: bool) -> None:
        """Take over what these lanes found; of several for one image, the nearest."""
        sizes, owners = self.sizes[done].tolist(), self.owners[done].tolist()
        for size, owner, lane in sorted(zip(sizes, owners, done, strict=True)):
            if size < self.radius and size < float(self.distances[owner]):
                self.x_adv[owner] = self.nearest[lane].view(self.shape)
                self.distances[owner] = size
                if stop_at_success:
                    self.fallen.add(owner)


def _patience(x: Tensor, steps: int) -> int:
    """Steps between two looks at what was found: lanes end at a look."""
    return 1 if x.is_cpu else max(k for k in range(1, _PATIENCE + 1) if steps % k == 0)


def _lead(logits: Any, pairs: Tensor) -> Tensor:
    """By how much the target is ahead of the label, (n,)."""
    own, target = logits.gather(1, pairs).unbind(1)
    lead: Tensor = target - own
    return lead
