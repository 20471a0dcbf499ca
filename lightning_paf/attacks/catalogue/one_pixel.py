"""The one-pixel attack."""

import torch
from torch import Tensor

from lightning_paf.attacks.base import Attack
from lightning_paf.attacks.target import Target
from lightning_paf.functional.losses import hard_labels
from lightning_paf.functional.predictions import misclassified
from lightning_paf.types import Forward, PerExampleLoss

_FACTOR = 0.5  # of the difference of two parents


class OnePixel(Attack):
    """One-pixel attack by differential evolution (Su, Vargas & Sakurai 2019).

    It is untargeted, and searches positions and colours of a few pixels.

    A candidate holds row, column and colour of each pixel. Every child is one candidate plus half the difference of two
    others, without crossover, and replaces its parent where the probability of the label is lower. The attack is
    score-based, with at most `1 + (1 + generations) * population` queries for each image. The search for an image ends
    with its first success.

    The budget counts pixels. Since no entry moves by more than 1, it bounds the l1 norm, in which `norm`, `eps` and
    `radius` are given (for three channels; grey images stay within a third of it).

    Args:
        pixels: Largest number of pixels to change.
        population: Candidates for each image.
        generations: Number of generations.
        batch_size: Changed images in a forward pass.
        target: See `Attack`.

    Raises:
        ValueError: No pixel or generation, fewer than 4 candidates, no image at once. In the call: more than three
            channels.
    """

    fixed_loss = True
    settings = ("pixels", "population", "generations")

    def __init__(
        self,
        pixels: int = 1,
        *,
        population: int = 400,
        generations: int = 100,
        batch_size: int = 4000,
        target: Target = None,
    ) -> None:
        self.pixels, self.population, self.generations = pixels, population, generations
        self.batch_size = batch_size
        self.require(pixels=1, population=4, generations=1, batch_size=1)
        super().__init__(3 * pixels, norm="l1", target=target)

    @torch.no_grad()
    def perturb(self, forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
        """The first success of each image, or its best candidate."""
        del loss
        if x.shape[1] > 3:
            raise ValueError(f"Images must have at most 3 channels for OnePixel, got {x.shape[1]}. Pass JSMA.")
        y, x_adv = hard_labels(y), x.clone()
        rows = (~misclassified(forward(x), y)).nonzero().squeeze(1)
        if len(rows) == 0:
            return x_adv
        genomes = self._first(x[rows])
        scores = self._scores(forward, x[rows], y[rows], genomes)
        for _ in range(self.generations):
            best, index = scores.min(dim=1)
            x_adv[rows] = _painted(x[rows], genomes[torch.arange(len(rows)), index])
            rest = best > 0
            rows, genomes, scores = rows[rest], genomes[rest], scores[rest]
            if len(rows) == 0:
                return x_adv
            children = self._children(genomes)
            theirs = self._scores(forward, x[rows], y[rows], children)
            better = theirs < scores
            genomes, scores = torch.where(better[:, :, None], children, genomes), torch.where(better, theirs, scores)
        x_adv[rows] = _painted(x[rows], genomes[torch.arange(len(rows)), scores.argmin(dim=1)])
        return x_adv

    def _first(self, x: Tensor) -> Tensor:
        """Initial candidates (n, population, pixels * (2 + C)) in [0, 1].

        Positions are uniform, colours Gaussian around grey.
        """
        shape = (len(x), self.population, self.pixels)
        positions = torch.rand(*shape, 2, device=x.device)
        colours = 0.5 + 0.5 * torch.randn(*shape, x.shape[1], device=x.device)
        return torch.cat((positions, colours.clamp(0, 1)), dim=3).flatten(2)

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
