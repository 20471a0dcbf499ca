"""Randomised smoothing: the classifier that a network becomes under Gaussian noise, and its certified radii."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_paf.evaluation.evaluate import sub_attack_seed
from lightning_paf.evaluation.statistics import Accuracy, exact_accuracy, mcnemar
from lightning_paf.functional.predictions import NO_PREDICTION, predicted
from lightning_paf.nn.modes import frozen

ABSTAINS = -1
"""Stands for a class where the samples do not tell which."""

_DRAWN_AT_ONCE = 128
"""Of one image's noise; fixed, since generators give other numbers where they are asked for other amounts."""


@dataclass(frozen=True, eq=False)
class Certificates:
    """What smoothing says of some images.

    Attributes:
        classes: (N,) int64, what is certified, or `ABSTAINS`.
        radii: (N,) float64, in l2 and units of pixels in [0, 1]: no perturbation below it changes the smoothed
            classifier's class, with probability at least 1 - alpha for each image; 0 where it abstains.
        predictions: (N,) int64, the smoothed classifier's class without a radius, or `ABSTAINS`.
    """

    classes: Tensor
    radii: Tensor
    predictions: Tensor

    def certified(self, y: Tensor, radius: float) -> Tensor:
        """Whether each image (N,) is certified to have its label against perturbations below `radius`."""
        return (self.classes == y.cpu()) & (self.radii >= radius)

    def accuracy(self, y: Tensor, radius: float) -> Accuracy:
        """Certified accuracy at `radius`."""
        return _share(self.certified(y, radius))

    def clean(self, y: Tensor) -> Accuracy:
        """Accuracy of the smoothed classifier's predictions; abstaining is wrong."""
        return _share(self.predictions == y.cpu())

    def abstained(self) -> Accuracy:
        """Share of images without a certificate."""
        return _share(self.classes == ABSTAINS)


@dataclass(frozen=True)
class Smoothing:
    """The smoothed classifier of a network: the class that it most often gives to an image plus Gaussian noise.

    It is not known exactly, only by samples, and abstains where these do not tell. Each statement about one image is
    wrong with probability at most alpha, over the noise. Cohen, Rosenfeld, Kolter, "Certified Adversarial Robustness
    via Randomized Smoothing", ICML 2019: Predict and Certify.

    The noise of an image depends on seed, number of the image and kind of device; neither on the other images nor on
    the batch size. A network that draws random numbers of its own draws them from torch's generators, unseeded.

    Args:
        sigma: Standard deviation of the noise in each pixel, in units of pixels in [0, 1].
        n0: Samples that select the class to certify.
        n: Samples that bound its probability, and that predictions count.
        alpha: Probability that a statement about an image is wrong.
        seed: Of the noise.
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
        """Refuse what is no distribution, no sample, no probability."""
        if not 0 < self.sigma < math.inf:
            raise ValueError(f"sigma is a standard deviation, > 0, but sigma={self.sigma}. Pass e.g. --sigma 0.25.")
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha is a probability in (0, 1), but alpha={self.alpha}. Pass e.g. --alpha 0.001.")
        if self.n0 < 1 or self.n < 1:
            raise ValueError(
                f"Selection and estimation need at least 1 sample each, but n0={self.n0} and n={self.n}. "
                "Pass e.g. --samples 100 10000."
            )
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, but is {self.batch_size}. Pass e.g. --batch_size 1024.")

    @property
    def largest_radius(self) -> float:
        """What is certified where all samples agree."""
        return certificate(self.n, self.n, self.sigma, self.alpha)

    def predict(self, model: nn.Module, x: Tensor, numbers: Sequence[int] | None = None) -> Tensor:
        """The smoothed classifier's classes (N,) int64, or `ABSTAINS`; by `n` samples an image.

        Args:
            model: Images (N, C, H, W) to logits; it is left as it was.
            x: Images (N, C, H, W) in [0, 1].
            numbers: Of the images, which seed their noise; default: 0 to N - 1.
        """
        found = [
            self._prediction(self._votes(model, image, number, "estimation", self.n))
            for number, image in zip(_numbers(x, numbers), x, strict=True)
        ]
        return torch.tensor(found, dtype=torch.int64)

    def certify(
        self,
        model: nn.Module,
        x: Tensor,
        numbers: Sequence[int] | None = None,
        progress: Callable[[int], object] = lambda _: None,
    ) -> Certificates:
        """Classes, certified radii and predictions.

        Args:
            model: Images (N, C, H, W) to logits; it is left as it was.
            x: Images (N, C, H, W) in [0, 1].
            numbers: Of the images, which seed their noise; default: 0 to N - 1.
            progress: Told how many images are done.
        """
        classes, radii, predictions = [], [], []
        for number, image in zip(_numbers(x, numbers), x, strict=True):
            selected = int(self._votes(model, image, number, "selection", self.n0).argmax())
            votes = self._votes(model, image, number, "estimation", self.n)
            radius = certificate(int(votes[selected]), self.n, self.sigma, self.alpha)
            classes.append(selected if radius > 0 else ABSTAINS)
            radii.append(radius)
            predictions.append(self._prediction(votes))
            progress(len(classes))
        return Certificates(
            torch.tensor(classes, dtype=torch.int64),
            torch.tensor(radii, dtype=torch.float64),
            torch.tensor(predictions, dtype=torch.int64),
        )

    def _prediction(self, votes: Tensor) -> int:
        """The majority of all samples; those without a vote count as a class of their own, which is never predicted."""
        winner = majority(torch.cat([votes, self.n - votes.sum(0, keepdim=True)]), self.alpha)
        return winner if winner < len(votes) else ABSTAINS

    @torch.no_grad()
    def _votes(self, model: nn.Module, image: Tensor, number: int, purpose: str, n: int) -> Tensor:
        """How many of `n` noisy copies of an image (C, H, W) get each class, (classes,) int64.

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
        """Standard normal numbers (at most batch_size, C, H, W), `n` images of them in all."""
        drawn = image.new_empty(0, *image.shape)
        while n > 0:
            wanted = min(self.batch_size, n)
            draws = math.ceil(max(0, wanted - len(drawn)) / _DRAWN_AT_ONCE)
            shape = (_DRAWN_AT_ONCE, *image.shape)
            more = [torch.randn(shape, generator=generator, device=image.device) for _ in range(draws)]
            drawn = torch.cat([drawn, *more])
            yield drawn[:wanted]
            drawn, n = drawn[wanted:], n - wanted


def majority(votes: Tensor, alpha: float) -> int:
    """The most frequent class of votes (classes,), or `ABSTAINS` where the runner-up may be more frequent.

    Args:
        votes: For each class, at least two.
        alpha: Level of the two-sided binomial test that both are equally frequent (Hung and Fithian, 2019).
    """
    counts, classes = votes.topk(2)
    # McNemar's exact test is the binomial test of a fair coin.
    return int(classes[0]) if mcnemar(int(counts[0]), int(counts[1])) <= alpha else ABSTAINS


def certificate(votes: int, n: int, sigma: float, alpha: float) -> float:
    """The l2 radius that `votes` of `n` samples for one class certify; 0 where this may not be the likeliest class.

    `sigma * Phi^-1(p)` for the lower bound p of the class's probability by Clopper and Pearson, at level alpha.
    """
    from scipy.special import ndtri

    low = exact_accuracy(votes, n, confidence=1 - 2 * alpha).low  # its lower end alone errs half as often as both
    return sigma * float(ndtri(low)) if low > 0.5 else 0.0


def _numbers(x: Tensor, numbers: Sequence[int] | None) -> Sequence[int]:
    return range(len(x)) if numbers is None else numbers


def _share(right: Tensor) -> Accuracy:
    return exact_accuracy(int(right.sum()), len(right))
