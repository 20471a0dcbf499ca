"""Images whose features are moved towards the boundary with another class: the examples of LADDER (Zhou et al., 2022).

No `Attack`: they are made once, of a network that is already trained, and are as far from their images as it comes.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lightning_paf.functional.predictions import predicted
from lightning_paf.synthesis.ladder.attention_svm import AttentionSVM, fit_attention_svm

_AT_ONCE = 512
_LARGEST = 2.0**60
_HALVINGS = 20


@dataclass(frozen=True, eq=False)
class LatentMoves:
    """Which way features are moved.

    Attributes:
        rows: Number of the source image, (n,).
        z: Its features, (n, d).
        direction: `a(z) o w` of the pair (class, target), (n, d).
        labels: Its class, (n,).
        targets: The class towards which it is moved, (n,).
        score: On which side of the pair's boundary it is, (n,); negative is its own.
        gain: By how much the score rises for each unit of eps with the attention held, (n,): `sum a^2 w^2`.
        svm_accuracy: Of the machines on examples that they were not fitted to, the mean over pairs.
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


@dataclass(frozen=True)
class Fitting:
    """How the machines are fitted, and to what.

    Attributes:
        images: Examples of each class, the first ones; 200 in the paper's code.
        share: Of them that are fitted to; the others measure.
        attention: Whether there is attention.
        temperature: Of the attention; 1 in the paper.
        epochs: Passes over the examples.
    """

    images: int = 200
    share: float = 0.67
    attention: bool = True
    temperature: float = 1.0
    epochs: int = 10


def latent_moves(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    per_class: int = 450,
    fitting: Fitting = Fitting(),
    seed: int = 0,
    progress: Callable[[str], object] = lambda _: None,
) -> LatentMoves:
    """Fit a machine for each ordered pair of classes, and give each source image the way to a random other class.

    Args:
        features: (N, d), of training images.
        labels: (N,).
        num_classes: Every class needs two images at least.
        per_class: Source images of each class, the first ones; 0 for all.
        fitting: Of the machines.
        seed: Of the order of the examples, and of the targets.
        progress: Told how far it is.

    Raises:
        ValueError: Too few images of a class.
    """
    places = [torch.nonzero(labels == label).flatten() for label in range(num_classes)]
    count = min(fitting.images, *map(len, places))
    fitted = int(fitting.share * count)
    if fitted < 1:
        raise ValueError(
            f"Every class needs 2 images to fit to, but one has {min(map(len, places))}, and --svm-images is "
            f"{fitting.images}. Pass more of them, or a smaller --data.val_size."
        )
    draws = torch.Generator().manual_seed(seed)
    found, accuracies = [], []
    for label, mine in enumerate(places):
        progress(f"boundaries of class {label} with the {num_classes - 1} others")
        others = [other for other in range(num_classes) if other != label]
        pairs = [(features[mine[:count]], features[places[other][:count]]) for other in others]
        svm = fit_attention_svm(
            *_examples(pairs, slice(fitted)),
            attention=fitting.attention,
            temperature=fitting.temperature,
            epochs=fitting.epochs,
            generator=torch.Generator().manual_seed(seed),
        )
        unseen, sides = _examples(pairs, slice(fitted, None))
        accuracies.append(float((svm.scores(unseen).sign() == sides).double().mean()))
        sources = mine[: per_class or None]
        towards = torch.randint(len(others), (len(sources),), generator=draws)
        found.append(_moves_of(svm, features, label, others, sources, towards))
    rows, z, direction, own, targets, score, gain = (torch.cat(parts) for parts in zip(*found, strict=True))
    return LatentMoves(rows, z, direction, own, targets, score, gain, sum(accuracies) / num_classes)


def _examples(pairs: list[tuple[Tensor, Tensor]], which: slice) -> tuple[Tensor, Tensor]:
    """Features (P, N, d), first those of the class itself; and their sides (N,)."""
    z = torch.stack([torch.cat([mine[which], other[which]]) for mine, other in pairs])
    return z, torch.tensor([-1.0, 1.0], device=z.device).repeat_interleave(z.shape[1] // 2)


def _moves_of(
    svm: AttentionSVM, features: Tensor, label: int, others: list[int], sources: Tensor, towards: Tensor
) -> tuple[Tensor, ...]:
    """The fields of `LatentMoves` for the sources of one class, by target."""
    parts = []
    for number, target in enumerate(others):
        rows = sources[towards.to(sources.device) == number]
        pair, z = svm.pair(number), features[rows][None]
        direction = pair.directions(z)[0]
        classes = [torch.full_like(rows, value) for value in (label, target)]
        parts.append((rows, z[0], direction, *classes, pair.scores(z)[0], direction.square().sum(1)))
    return tuple(torch.cat(values) for values in zip(*parts, strict=True))


def random_directions(moves: LatentMoves, seed: int = 0) -> LatentMoves:
    """The same moves along random directions of the same lengths: what the boundaries have to beat."""
    noise = torch.randn(moves.direction.shape, generator=torch.Generator().manual_seed(seed)).to(moves.z)
    length = moves.direction.norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True)
    direction = noise * length
    gain = (direction * moves.direction).sum(1)
    return replace(moves, direction=direction, gain=gain)


Flips = Callable[[Tensor, Tensor], Tensor]
"""`(rows, eps) -> ` whether the class of each of these moves has changed at its eps, all (k,)."""


def in_parts(network: nn.Module, batch: Tensor) -> Tensor:
    """What a network makes of a large batch, without a graph."""
    with torch.no_grad():
        return torch.cat([network(part) for part in torch.split(batch, _AT_ONCE)])


def flips_of(classifier: nn.Module, generator: nn.Module, moves: LatentMoves) -> Flips:
    """Ask the network itself whether it sees another class in the decoded move than in the decoded features."""

    def seen(z: Tensor) -> Tensor:
        return predicted(in_parts(nn.Sequential(generator, classifier), z))

    before = seen(moves.z)

    def flips(rows: Tensor, eps: Tensor) -> Tensor:
        return seen(moves.z[rows] + eps[:, None] * moves.direction[rows]) != before[rows]

    return flips


def eps_for_fraction(flips: Flips, like: Tensor, share: float) -> Tensor:
    """One eps for all, such that about this share of the images changes its class, by bisection.

    Args:
        flips: Which have.
        like: Any tensor (n, ...) of the moves.
        share: Wanted, in (0, 1).

    Raises:
        ValueError: At no eps as many do.
    """
    rows = torch.arange(len(like), device=like.device)

    def found(eps: float) -> float:
        return float(flips(rows, torch.full((len(rows),), eps, device=like.device)).float().mean())

    low, high = 0.0, 1.0
    while found(high) < share:
        low, high = high, 2 * high
        if high > _LARGEST:
            raise ValueError(f"No eps makes {100 * share:.0f} % of the images flip. Pass a smaller --flip.")
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if found(middle) >= share else (middle, high)
    return torch.full((len(rows),), high, device=like.device)


def adaptive_eps(flips: Flips, like: Tensor, start: float, step: float, most: float, tries: int = 100) -> Tensor:
    """For each image the smallest eps of a growing series that flips it, else the last one that was tried.

    The series begins with `start` and grows by `step`, from eps 1 on by ten times that, up to `most`.

    Args:
        flips: Which have.
        like: Any tensor (n, ...) of the moves.
        start: First eps.
        step: Between two.
        most: Last eps.
        tries: Longest series.

    Raises:
        ValueError: No positive step, or an end before the start.
    """
    if not (0 <= start <= most and step > 0):
        raise ValueError(
            f"eps grows from START to MOST by STEP > 0, but START={start}, STEP={step}, MOST={most}. "
            "Pass --adaptive 0.5 0.1 25."
        )
    eps = torch.full((len(like),), start, device=like.device)
    rows, now = torch.arange(len(like), device=like.device), start
    for _ in range(tries):
        eps[rows] = now
        rows = rows[~flips(rows, eps[rows])]
        now = now + (10 * step if now >= 1 else step)
        if not len(rows) or now > most:
            break
    return eps
