"""Randomised smoothing: predictions and certified radii under Gaussian noise."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from lightning_paf.attacks.probe import Flags, probe, warn_of
from lightning_paf.evaluation.evaluate import sub_attack_seed
from lightning_paf.evaluation.statistics import Accuracy, exact_accuracy, mcnemar
from lightning_paf.functional.predictions import NO_PREDICTION, predicted
from lightning_paf.nn.modes import frozen
from lightning_paf.utils.figures import BLUE, REFERENCE, draw_accuracy, open_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABSTAINS = -1
"""Class index of an abstention."""

_DRAWN_AT_ONCE = 128
"""Noise images per draw; fixed, since random numbers depend on the draw size."""


@dataclass(frozen=True, eq=False)
class Certificates:
    """Certificates of some images.

    Attributes:
        classes: (N,) int64, the certified class, or `ABSTAINS`.
        radii: (N,) float64, in l2 and units of pixels in [0, 1]: no perturbation below it changes the smoothed
            classifier's class, with probability at least 1 - alpha for each image; 0 where it abstains.
        predictions: (N,) int64, the smoothed classifier's class without a radius, or `ABSTAINS`.
        flags: Signs of an unreliable result; see `attacks.probe`.
    """

    classes: Tensor
    radii: Tensor
    predictions: Tensor
    flags: Flags = field(default_factory=dict)

    def certified(self, y: Tensor, radius: float) -> Tensor:
        """Mask of images certified to keep their label (N,) within `radius`, (N,) bool."""
        return (self.classes == y.cpu()) & (self.radii >= radius)

    def accuracy(self, y: Tensor, radius: float) -> Accuracy:
        """Certified accuracy at `radius`."""
        return _accuracy(self.certified(y, radius))

    def clean(self, y: Tensor) -> Accuracy:
        """Accuracy of the smoothed classifier's predictions; abstaining is wrong."""
        return _accuracy(self.predictions == y.cpu())

    def abstained(self) -> Accuracy:
        """Fraction of images without a certificate."""
        return _accuracy(self.classes == ABSTAINS)


@dataclass(frozen=True)
class Smoothing:
    """Smoothed classifier: the most frequent class of a network under Gaussian noise.

    The class is estimated from samples; the classifier abstains if these are inconclusive. A prediction or certificate
    of an image is wrong with probability at most alpha, over the noise. The algorithms are Predict and Certify of
    Cohen, Rosenfeld, Kolter, "Certified Adversarial Robustness via Randomized Smoothing", ICML 2019.

    The noise of an image depends on seed, number of the image and kind of device, but not on the other images or the
    batch size. A network with random numbers draws them from torch's generators, unseeded.

    Args:
        sigma: Standard deviation of the noise in each pixel, in units of pixels in [0, 1].
        n0: Number of samples to select the class.
        n: Number of samples to bound its probability, and for the prediction.
        alpha: Largest probability that a prediction or certificate is wrong.
        seed: Seed of the noise.
        batch_size: Noisy images in a forward pass.

    Raises:
        ValueError: One of them out of range.
    """

    sigma: float
    n0: int = 100
    n: int = 10_000
    alpha: float = 0.001
    seed: int = 0
    batch_size: int = 1024

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 < self.sigma < math.inf:
            raise ValueError(f"sigma must be above 0 and finite, got sigma={self.sigma}. Pass e.g. --sigma 0.25.")
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha must be above 0 and below 1, got alpha={self.alpha}. Pass e.g. --alpha 0.001.")
        if min(self.n0, self.n) < 1:
            got = f"n0={self.n0} and n={self.n}"
            raise ValueError(f"n0 and n must be at least 1, got {got}. Pass e.g. --samples 100 10000.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}. Pass e.g. --batch_size 1024.")

    @property
    def largest_radius(self) -> float:
        """Certified radius where all samples agree."""
        return certificate(self.n, self.n, self.sigma, self.alpha)

    def certify(
        self,
        model: nn.Module,
        x: Tensor,
        numbers: Sequence[int] | None = None,
        progress: Callable[[int], object] = lambda _: None,
    ) -> Certificates:
        """Classes, certified radii and predictions.

        Args:
            model: Images (N, C, H, W) to logits; left unchanged.
            x: Images (N, C, H, W) in [0, 1].
            numbers: Numbers of the images, which seed their noise; default: 0 to N - 1.
            progress: Called with the number of finished images.
        """
        checked = probe(model, x)
        warn_of(checked.flags)
        found = []
        for number, image in zip(range(len(x)) if numbers is None else numbers, x, strict=True):
            selected = int(self._votes(checked.model, image, number, "selection", self.n0).argmax())
            votes = self._votes(checked.model, image, number, "estimation", self.n)
            radius = certificate(int(votes[selected]), self.n, self.sigma, self.alpha)
            found.append((selected if radius > 0 else ABSTAINS, radius, self._prediction(votes)))
            progress(len(found))
        classes, radii, predictions = torch.tensor(found, dtype=torch.float64).view(-1, 3).unbind(1)
        return Certificates(classes.long(), radii, predictions.long(), checked.flags)

    def _prediction(self, votes: Tensor) -> int:
        """Majority class of all samples, or `ABSTAINS`.

        Samples without a vote count as another class, which is never predicted.
        """
        winner = majority(torch.cat([votes, self.n - votes.sum(0, keepdim=True)]), self.alpha)
        return winner if winner < len(votes) else ABSTAINS

    @torch.no_grad()
    def _votes(self, model: nn.Module, image: Tensor, number: int, purpose: str, n: int) -> Tensor:
        """Number of votes per class (classes,) int64, from `n` noisy copies of an image.

        Logits that are not finite vote for none, which can only make the bound smaller.
        """
        generator = torch.Generator(image.device).manual_seed(sub_attack_seed(self.seed, number, 0, purpose))
        votes = []
        with frozen(model), torch.autocast(image.device.type, enabled=False):
            for noise in self._noise(image, n, generator):
                logits = model(image + self.sigma * noise)
                classes = predicted(logits)
                votes.append(torch.bincount(classes[classes != NO_PREDICTION], minlength=logits.shape[1]))
        return torch.stack(votes).sum(0).cpu()

    def _noise(self, image: Tensor, n: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Batches of standard normal noise (at most batch_size, C, H, W), `n` in total."""
        draws, shape = math.ceil(self.batch_size / _DRAWN_AT_ONCE), (_DRAWN_AT_ONCE, *image.shape)
        for first in range(0, n, draws * _DRAWN_AT_ONCE):
            drawn = [torch.randn(shape, generator=generator, device=image.device) for _ in range(draws)]
            yield from torch.split(torch.cat(drawn)[: n - first], self.batch_size)


def majority(votes: Tensor, alpha: float) -> int:
    """Most frequent class, or `ABSTAINS` if the runner-up may be more frequent.

    Args:
        votes: Votes for each class, at least two classes.
        alpha: Level of the two-sided binomial test that both are equally frequent (Hung and Fithian, 2019).
    """
    counts, classes = votes.topk(2)
    # McNemar's exact test is the binomial test of a fair coin.
    return int(classes[0]) if mcnemar(int(counts[0]), int(counts[1])) <= alpha else ABSTAINS


def certificate(votes: int, n: int, sigma: float, alpha: float) -> float:
    """Certified l2 radius from `votes` of `n` samples; 0 if there is none.

    `sigma * Phi^-1(p)` for the lower bound p of the class's probability by Clopper and Pearson, at level alpha.
    """
    from scipy.special import ndtri

    low = exact_accuracy(votes, n, confidence=1 - 2 * alpha).low  # the lower end alone errs half as often as both
    return sigma * float(ndtri(low)) if low > 0.5 else 0.0


def draw_certified(found: Certificates, y: Tensor, smoothing: Smoothing, headline: str) -> "Figure":
    """Draw certified accuracy over the radius, with 95 % intervals."""
    end, clean = 1.08 * smoothing.largest_radius, found.clean(y)
    radii = np.linspace(0, end, 400).tolist()
    accuracies = [found.accuracy(y, radius) for radius in radii]
    with open_figure(7.2, 4.8, headline) as figure:
        axes = figure.add_subplot()
        draw_accuracy(axes, radii, accuracies, "certified accuracy", "radius (l2, pixels in [0, 1])")
        label = f"clean accuracy when smoothed, {100 * clean.value:.1f} %"
        axes.plot([0], [100 * clean.value], "D", color=BLUE, markersize=8, clip_on=False, label=label)
        label = f"maximum that {smoothing.n:,} samples can certify"
        axes.axvline(smoothing.largest_radius, **REFERENCE, label=label)
        axes.set_xlim(0, end)
        axes.legend()
    return figure


def _accuracy(right: Tensor) -> Accuracy:
    return exact_accuracy(int(right.sum()), len(right))
