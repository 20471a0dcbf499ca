"""The one-pixel attack."""

from typing import Any

import torch
from torch import Tensor

from lightning_paf.attacks.base import Attack
from lightning_paf.functional.losses import hard_labels
from lightning_paf.functional.predictions import misclassified
from lightning_paf.types import Forward, PerExampleLoss

_FACTOR = 0.5  # of the difference of two parents


class OnePixel(Attack):
    """Differential evolution over places and colours of a few pixels (Su, Vargas & Sakurai 2019), untargeted.

    A candidate holds row, column and colour of each pixel. Every child is one candidate plus half the difference of two
    others, without crossover, and replaces its parent where the probability of the label is lower. Asks for scores
    only: an image that resists is asked `1 + (1 + generations) * population` times. An image is not asked again after
    its first success.

    The budget counts pixels. Since no entry of the image moves by more than 1, it bounds the l1 norm, which is what
    `norm`, `eps` and `radius` say (for three channels; grey images stay within a third of it).

    Args:
        pixels: How many pixels may change.
        population: Candidates for each image.
        generations: How often all candidates have a child.
        batch_size: Changed images in a forward pass.

    Raises:
        ValueError: No pixel or generation, fewer than 4 candidates, no image at once. In the call: more than three
            channels.
    """

    fixed_loss = True

    def __init__(
        self, pixels: int = 1, *, population: int = 400, generations: int = 100, batch_size: int = 4000
    ) -> None:
        for name, value, least in (
            ("pixels", pixels, 1),
            ("population", population, 4),
            ("generations", generations, 1),
            ("batch_size", batch_size, 1),
        ):
            if value < least:
                raise ValueError(f"{name}={value} must be at least {least}. The paper uses 400 candidates, 100 times.")
        super().__init__(3 * pixels, norm="l1")
        self.pixels = pixels
        self.population = population
        self.generations = generations
        self.batch_size = batch_size

    def describe(self) -> dict[str, Any]:
        """The threat model and the settings as plain values, for result files."""
        own = {"pixels": self.pixels, "population": self.population, "generations": self.generations}
        return {key: value for key, value in super().describe().items() if key != "loss"} | own

    @torch.no_grad()
    def perturb(self, forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
        """The first success of each image, or its best candidate."""
        del loss
        if x.shape[1] > 3:
            raise ValueError(f"OnePixel works on at most 3 channels, but the images have {x.shape[1]}. Use JSMA.")
        y, x_adv = hard_labels(y), x.clone()
        rows = (~misclassified(forward(x), y)).nonzero().squeeze(1)
        if len(rows) == 0:
            return x_adv
        genomes = self._first(x[rows])
        scores = self._scores(forward, x[rows], y[rows], genomes)
        for _ in range(self.generations):
            best, places = scores.min(dim=1)
            x_adv[rows] = _painted(x[rows], genomes[torch.arange(len(rows)), places])
            alive = best > 0
            rows, genomes, scores = rows[alive], genomes[alive], scores[alive]
            if len(rows) == 0:
                return x_adv
            children = self._children(genomes)
            theirs = self._scores(forward, x[rows], y[rows], children)
            better = theirs < scores
            genomes, scores = torch.where(better[:, :, None], children, genomes), torch.where(better, theirs, scores)
        x_adv[rows] = _painted(x[rows], genomes[torch.arange(len(rows)), scores.argmin(dim=1)])
        return x_adv

    def _first(self, x: Tensor) -> Tensor:
        """Candidates (n, population, pixels * (2 + C)) in [0, 1]: uniform places, Gaussian colours around grey."""
        shape = (len(x), self.population, self.pixels)
        places = torch.rand(*shape, 2, device=x.device)
        colours = 0.5 + 0.5 * torch.randn(*shape, x.shape[1], device=x.device)
        return torch.cat((places, colours.clamp(0, 1)), dim=3).flatten(2)

    def _children(self, genomes: Tensor) -> Tensor:
        """A child for every candidate, made of three random ones."""
        a, b, c = torch.rand(3, *genomes.shape[:2], device=genomes.device).argsort(dim=2)
        first, second, third = (genomes.gather(1, order[:, :, None].expand_as(genomes)) for order in (a, b, c))
        return (first + _FACTOR * (second - third)).clamp(0, 1)

    def _scores(self, forward: Forward, x: Tensor, y: Tensor, genomes: Tensor) -> Tensor:
        """Probability of the label (n, population); -1 where the prediction is wrong."""
        owners = torch.arange(len(x), device=x.device).repeat_interleave(self.population)
        scores = []
        for part in torch.split(torch.arange(len(owners), device=x.device), self.batch_size):
            mine = owners[part]
            logits = forward(_painted(x[mine], genomes.flatten(0, 1)[part])).float()
            own = logits.softmax(dim=1).gather(1, y[mine, None]).squeeze(1)
            scores.append(torch.where(misclassified(logits, y[mine]), -1.0, own))
        return torch.cat(scores).view(len(x), -1)


def _painted(x: Tensor, genomes: Tensor) -> Tensor:
    """Images (n, C, H, W) with the pixels of one candidate each (n, pixels * (2 + C))."""
    count, channels, height, width = x.shape
    parts = genomes.view(count, -1, 2 + channels)
    size = torch.tensor([height, width], device=x.device)
    row, column = torch.minimum((parts[:, :, :2] * size).long(), size - 1).unbind(2)
    painted, owners = x.clone(), torch.arange(count, device=x.device)
    for pixel in range(parts.shape[1]):
        painted[owners, :, row[:, pixel], column[:, pixel]] = parts[:, pixel, 2:].to(x.dtype)
    return painted
