"""Attacks that look for the nearest adversarial image."""

from abc import abstractmethod
from typing import Any, final

import torch
from torch import Tensor, nn

from lightning_paf.attacks.base import Attack
from lightning_paf.functional.geometry import geometry_of
from lightning_paf.functional.losses import hard_labels
from lightning_paf.types import Forward, Norm, PerExampleLoss


class MinimalAttack(Attack):
    """Looks for the nearest adversarial image at any distance; `eps` decides only which are accepted.

    The call returns what was found within `eps`, and the image itself where nothing was: a perturbation that is
    shrunk to the ball would rarely mislead. `nearest` returns what was found at any distance. Images that are
    misclassified from the start are returned unchanged.

    Subclasses write `minimum`.
    """

    fixed_loss = True

    def describe(self) -> dict[str, Any]:
        """The threat model and the settings as plain values, for result files."""
        return {key: value for key, value in super().describe().items() if key != "loss"}

    @final
    def nearest(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest adversarial images, whatever `eps` is.

        Args:
            model: Images to logits. Left as found.
            x: Images (N, C, H, W) inside `bounds`. Not modified.
            y: Labels (N,), or distributions over the classes (N, K), of which the most likely class counts.

        Returns:
            Images (N, C, H, W), and their distances (N,) in `norm`: 0 for an image that is misclassified as it is,
            infinite where no adversarial image was found.
        """
        with self._ready(model):
            x = self._own(x, y)
            if len(x) == 0:
                return x, x.new_zeros(0)
            found, distances = self.minimum(self._path(model), x, hard_labels(y.detach()))
        return found.detach(), distances.detach()

    @final
    def perturb(self, forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
        """The nearest adversarial images where they lie within `eps`."""
        del loss
        found, distances = self.minimum(forward, x, hard_labels(y))
        near = distances <= geometry_of(self.norm).share_of_radius * self.radius
        return torch.where(near.view(-1, *[1] * (x.dim() - 1)), found, x)

    @abstractmethod
    def minimum(self, forward: Forward, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The mathematics: images and distances as `nearest` returns them."""

    def require(self, **least: int) -> None:
        """Refuse arguments below their least values."""
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name}={getattr(self, name)} makes no {type(self).__name__}. Give at least {bound}.")


class Nearest:
    """The nearest adversarial image so far, for each clean image.

    Args:
        x: Clean images (N, C, H, W); they stand in until something is found.
        norm: What measures the distance.
    """

    def __init__(self, x: Tensor, norm: Norm) -> None:
        self.clean, self.ball = x, geometry_of(norm)
        self.x = x.clone()
        self.distances = torch.full((len(x),), torch.inf, device=x.device, dtype=x.dtype)

    @torch.no_grad()
    def update(self, rows: Tensor, points: Tensor, adversarial: Tensor) -> None:
        """Take over adversarial points that are nearer than before.

        Args:
            rows: Which clean image each point belongs to (n,); an image may occur several times.
            points: (n, C, H, W).
            adversarial: Which of the points are (n,).
        """
        rows, points = rows[adversarial], points[adversarial]
        if len(rows) == 0:
            return
        sizes = self.ball.size(points - self.clean[rows]).to(self.distances.dtype)
        before = self.distances.clone()
        self.distances = self.distances.scatter_reduce(0, rows, sizes, "amin")
        won = (sizes == self.distances[rows]) & (sizes < before[rows])
        self.x[rows[won]] = points[won]
