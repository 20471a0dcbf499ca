"""Attacks that search for the nearest adversarial image."""

from abc import abstractmethod
from typing import final

import torch
from torch import Tensor, nn

from lightning_paf.attacks.base import Attack
from lightning_paf.attacks.target import aims
from lightning_paf.functional.geometry import geometry_of, per_example
from lightning_paf.functional.losses import hard_labels
from lightning_paf.types import Forward, Norm, PerExampleLoss


class MinimalAttack(Attack):
    """Minimal-norm attack; subclasses implement `minimum`.

    It searches for the nearest adversarial image at any distance. The call returns results within `eps`, and the clean
    image where none is within `eps`. Results are not rescaled to the ball, which would rarely fool the model. `nearest`
    returns results at any distance. Images that are misclassified from the start are returned unchanged.
    """

    fixed_loss = True

    @final
    def nearest(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest adversarial images, independent of `eps`.

        Args:
            model: Images to logits. Left unchanged.
            x: Images (N, C, H, W) inside `bounds`. Not modified.
            y: Labels (N,), or distributions over the classes (N, K), of which the most likely class counts.

        Returns:
            Images (N, C, H, W), and their distances (N,) in `norm`: 0 for a misclassified clean image, infinite where
            no adversarial image was found. With a `target`, an image is adversarial where it is classified as that; the
            distance is infinite for images of their target class.
        """
        with self._ready(model):
            x = self._own(x, y)
            if len(x) == 0:
                return x, x.new_zeros(0)
            path, found, distances = self._path(model), x.clone(), x.new_full((len(x),), torch.inf)
            self._check_classes(path, x)
            for rows, forward, labels in aims(path, hard_labels(y.detach()), self.target):
                found[rows], distances[rows] = (part.detach() for part in self.minimum(forward, x[rows], labels))
        return found, distances

    @final
    def perturb(self, forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
        """Return the nearest adversarial images within `eps`, else the clean images."""
        del loss
        found, distances = self.minimum(forward, x, hard_labels(y))
        near = distances <= geometry_of(self.norm).fraction_of_radius * self.radius
        return torch.where(per_example(near, x), found, x)

    @abstractmethod
    def minimum(self, forward: Forward, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest adversarial images and their distances, as `nearest` does."""


class Nearest:
    """Nearest adversarial images (N, C, H, W) so far, and their distances (N,).

    The clean image where none was found.
    """

    def __init__(self, x: Tensor, norm: Norm) -> None:
        self.clean, self.ball = x, geometry_of(norm)
        self.x = x.clone()
        self.distances = torch.full((len(x),), torch.inf, device=x.device, dtype=x.dtype)

    @torch.no_grad()
    def update(self, rows: Tensor, points: Tensor, adversarial: Tensor) -> None:
        """Store the points (n, C, H, W) that are adversarial (n,) and nearer than before.

        `rows` (n,) holds the index of the clean image of each point; an image can occur several times.
        """
        rows, points = rows[adversarial], points[adversarial]
        if len(rows) == 0:
            return
        sizes = self.ball.size(points - self.clean[rows]).to(self.distances.dtype)
        before = self.distances.clone()
        self.distances = self.distances.scatter_reduce(0, rows, sizes, "amin")
        won = (sizes == self.distances[rows]) & (sizes < before[rows])
        self.x[rows[won]] = points[won]
