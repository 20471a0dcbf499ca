"""Target classes of targeted attacks."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lightning_paf.functional.predictions import undefined
from lightning_paf.types import Forward

Target = int | list[int] | None
"""Class to reach: one for all images, or a list with that of each label.

None for an untargeted attack.
"""


def check_target(target: Target) -> None:
    """Check a target without the number of classes.

    Raises:
        ValueError: A class that is no number from 0, an empty list, or a class that is its own target.
    """
    goals = target if isinstance(target, list) else [] if target is None else [target]
    if target == [] or any(isinstance(goal, bool) or not isinstance(goal, int) or goal < 0 for goal in goals):
        raise ValueError(
            f"target must be a class from 0, or a list of one such class for each label, got {target}. Pass target=3."
        )
    own = [goal for label, goal in enumerate(goals) if goal == label]
    if isinstance(target, list) and own:
        raise ValueError(f"target of class {own[0]} must be another class, got {target}. Pass one for each label.")


def check_classes(target: Target, classes: int) -> None:
    """Check that targets are among `classes` classes.

    Raises:
        ValueError: A class that does not exist, or a list of another length.
    """
    if isinstance(target, list) and len(target) != classes:
        raise ValueError(
            f"target must list {classes} classes, one for each label, got {len(target)}. Pass target=3 for one class."
        )
    largest = -1 if target is None else max(target) if isinstance(target, list) else target
    if largest >= classes:
        raise ValueError(f"target must be a class from 0 to {classes - 1}, got {largest}. Pass target=0.")


def goals_of(target: Target, labels: Tensor) -> Tensor:
    """Target classes (N,) of images with labels (N,); the labels without a target."""
    if isinstance(target, list):
        return torch.tensor(target, device=labels.device)[labels]
    return labels if target is None else torch.full_like(labels, target)


class TowardTarget:
    """A model with two classes: all others, and the target.

    The logits (N, 2) are the largest other logit and that of the target. Any untargeted attack on the first class is
    then an attack towards the target, with the margin of the target as its loss. Rows that are not finite are no
    success. It has the methods `exact` and `softened` where `forward` has them.

    Args:
        forward: Images (N, C, H, W) to logits (N, K).
        goal: The target class.
    """

    exact: "TowardTarget"
    softened: Callable[[Tensor, Tensor], Tensor]

    def __init__(self, forward: Forward, goal: int) -> None:
        self.forward, self.goal = forward, goal
        if hasattr(forward, "exact"):
            self.exact = TowardTarget(forward.exact, goal)
        if hasattr(forward, "softened"):
            self.softened = lambda x, softness: self._pair(forward.softened(x, softness))

    def __call__(self, x: Tensor) -> Tensor:
        """Compute logits (N, 2)."""
        return self._pair(self.forward(x))

    def _pair(self, logits: Tensor) -> Tensor:
        others = torch.cat((logits[:, : self.goal], logits[:, self.goal + 1 :]), dim=1).amax(1)
        both = torch.stack((others, logits[:, self.goal]), dim=1)
        return torch.where(undefined(logits)[:, None], both.new_tensor([1.0, 0.0]), both)


def aims(forward: Forward, labels: Tensor, target: Target) -> Iterator[tuple[Tensor, Forward, Tensor]]:
    """Yield rows (n,), the function to attack, and labels (n,).

    These are all images, or those of one target class at a time. Images of their target class are left out.
    """
    if target is None:
        yield torch.arange(len(labels), device=labels.device), forward, labels
        return
    goals = goals_of(target, labels)
    for goal in torch.unique(goals).tolist():
        rows = ((goals == goal) & (labels != goal)).nonzero().squeeze(1)
        if len(rows):
            yield rows, TowardTarget(forward, goal), torch.zeros_like(labels[rows])
