"""Features moved towards class boundaries, as in LADDER (Zhou et al., 2022).

They are not an `Attack`: they are computed once, from a trained network, at any distance from their images.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lightning_paf.functional.predictions import predicted
from lightning_paf.synthesis.ladder.attention_svm import AttentionSVM, fit_attention_svm

_BATCH = 512
_LARGEST = 2.0**60
_HALVINGS = 20


@dataclass(frozen=True, eq=False)
class LatentMoves:
    """Features and the directions in which they are moved.

    Attributes:
        rows: Number of the source image, (n,).
        z: Its features, (n, d).
        direction: `a(z) o w` of the pair (class, target), (n, d).
        labels: Its class, (n,).
        targets: Class to move it towards, (n,).
        score: Score of the pair's SVM, (n,); negative on the side of its class.
        gain: Increase of the score per unit of eps with constant attention, (n,): `sum a^2 w^2`.
        svm_accuracy: Accuracy of the SVMs on held-out examples, the mean over pairs.
    """

    rows: Tensor
    z: Tensor
    direction: Tensor
    labels: Tensor
    targets: Tensor
    score: Tensor
    gain: Tensor
    svm_accuracy: float

    def moved(self, eps: Tensor) -> Tensor:
        """Features `z + eps a(z) o w`, (n, d), for eps (n,)."""
        return self.z + eps[:, None] * self.direction


def latent_moves(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    per_class: int = 450,
    svm_images: int = 200,
    fitted: float = 0.67,
    attention: bool = True,
    temperature: float = 1.0,
    seed: int = 0,
    progress: Callable[[str], object] = lambda _: None,
) -> LatentMoves:
    """Fit an SVM per ordered pair of classes; draw a target class for each image.

    Args:
        features: (N, d), of training images.
        labels: (N,), at least two images of every class.
        num_classes: Number of classes.
        per_class: Source images of each class, the first ones; 0 for all.
        svm_images: Examples of each class for the SVMs, the first ones; 200 in the paper's code.
        fitted: Fraction of these for fitting the SVMs; the others are for their accuracy.
        attention: False for linear SVMs.
        temperature: Temperature of the attention; 1 in the paper.
        seed: Seed of the order of the examples, and of the targets.
        progress: Called with a line for each class.

    Raises:
        ValueError: Too few images of a class.
    """
    members = [torch.nonzero(labels == label).flatten() for label in range(num_classes)]
    smallest = min(map(len, members))
    count = min(svm_images, smallest)
    size = int(fitted * count)
    if size < 1:
        raise ValueError(
            f"Each class must have at least 2 images for the SVMs, got {count}. Pass a larger --svm-images, or a "
            "smaller --data.val_size."
        )
    draws = torch.Generator().manual_seed(seed)
    found, accuracies = [], []
    for label, own in enumerate(members):
        progress(f"boundaries of class {label} with the {num_classes - 1} others")
        others = [other for other in range(num_classes) if other != label]
        pairs = [(features[own[:count]], features[members[other][:count]]) for other in others]
        generator = torch.Generator().manual_seed(seed)
        examples = _examples(pairs, slice(size))
        svm = fit_attention_svm(*examples, attention=attention, temperature=temperature, generator=generator)
        unseen, sides = _examples(pairs, slice(size, None))
        accuracies.append(float((svm.scores(unseen).sign() == sides).double().mean()))
        sources = own[: per_class or None]
        targets = torch.randint(len(others), (len(sources),), generator=draws)
        found.append(_moves_of(svm, features, label, others, sources, targets))
    rows, z, direction, own_labels, targets, score, gain = (torch.cat(parts) for parts in zip(*found, strict=True))
    return LatentMoves(rows, z, direction, own_labels, targets, score, gain, sum(accuracies) / num_classes)


def _examples(pairs: list[tuple[Tensor, Tensor]], rows: slice) -> tuple[Tensor, Tensor]:
    """Features (P, N, d), those of the class itself first, and their sides (N,)."""
    z = torch.stack([torch.cat([own[rows], other[rows]]) for own, other in pairs])
    return z, torch.tensor([-1.0, 1.0], device=z.device).repeat_interleave(z.shape[1] // 2)


def _moves_of(
    svm: AttentionSVM, features: Tensor, label: int, others: list[int], sources: Tensor, targets: Tensor
) -> tuple[Tensor, ...]:
    """Return the tensors of `LatentMoves` for the sources of one class, by target."""
    parts = []
    for number, target in enumerate(others):
        rows = sources[targets.to(sources.device) == number]
        pair, z = svm.pair(number), features[rows][None]
        direction = pair.directions(z)[0]
        classes = [torch.full_like(rows, value) for value in (label, target)]
        parts.append((rows, z[0], direction, *classes, pair.scores(z)[0], direction.square().sum(1)))
    return tuple(torch.cat(values) for values in zip(*parts, strict=True))


def random_directions(moves: LatentMoves, seed: int = 0) -> LatentMoves:
    """The same moves along random directions of the same lengths, as a control."""
    noise = torch.randn(moves.direction.shape, generator=torch.Generator().manual_seed(seed)).to(moves.z)
    direction = noise * moves.direction.norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True)
    return replace(moves, direction=direction, gain=(direction * moves.direction).sum(1))


Flips = Callable[[Tensor, Tensor], Tensor]
"""Function of `(rows, eps)`: the mask of moves that change the class, (k,)."""


def in_parts(network: nn.Module, batch: Tensor) -> Tensor:
    """Output of a network for a large batch, without a graph."""
    with torch.no_grad():
        return torch.cat([network(part) for part in torch.split(batch, _BATCH)])


def flips_of(classifier: nn.Module, generator: nn.Module, moves: LatentMoves) -> Flips:
    """Compare the predicted class of decoded moves with that of the decoded features."""
    decoded = nn.Sequential(generator, classifier)
    before = predicted(in_parts(decoded, moves.z))

    def flips(rows: Tensor, eps: Tensor) -> Tensor:
        return predicted(in_parts(decoded, moves.z[rows] + eps[:, None] * moves.direction[rows])) != before[rows]

    return flips


def eps_for_fraction(flips: Flips, like: Tensor, fraction: float) -> Tensor:
    """Find one eps by bisection that changes the class of a fraction of the images.

    Args:
        flips: Whether moves change the class.
        like: Any tensor (n, ...) on the device of the moves; the result is (n,).
        fraction: In (0, 1].

    Raises:
        ValueError: No eps changes the class of so many images.
    """
    rows = torch.arange(len(like), device=like.device)

    def enough(eps: float) -> bool:
        return float(flips(rows, torch.full((len(rows),), eps, device=like.device)).float().mean()) >= fraction

    low, high = 0.0, 1.0
    while not enough(high):
        low, high = high, 2 * high
        if high > _LARGEST:
            raise ValueError(
                f"--flip must be attainable, got {fraction}: no eps changes the class of so many images. Pass a "
                "smaller --flip."
            )
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return torch.full((len(rows),), high, device=like.device)


def adaptive_eps(flips: Flips, like: Tensor, start: float, step: float, most: float, tries: int = 100) -> Tensor:
    """Find the smallest eps of a series that changes the class of each image.

    The last eps is used where no eps does.

    Args:
        flips: Whether moves change the class.
        like: Any tensor (n, ...) on the device of the moves; the result is (n,).
        start: First eps.
        step: Step of the series; ten times as large from eps 1 on.
        most: Largest eps.
        tries: Maximum length of the series.

    Raises:
        ValueError: A step that is not positive, or an end before the start.
    """
    if not (0 <= start <= most and step > 0):
        raise ValueError(
            f"--adaptive must be E, STEP > 0 and MAX >= E, got {start}, {step}, {most}. Pass --adaptive 0.5 0.1 25."
        )
    eps = torch.full((len(like),), start, device=like.device)
    rows, current = torch.arange(len(like), device=like.device), start
    for _ in range(tries):
        eps[rows] = current
        rows = rows[~flips(rows, eps[rows])]
        current = current + (10 * step if current >= 1 else step)
        if not len(rows) or current > most:
            break
    return eps
