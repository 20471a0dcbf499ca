"""Calibration and selective prediction of class probabilities."""

import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_calibration_error

BINS = 10
"""Bins of the calibration error and of the reliability diagram."""


def entropy(probabilities: Tensor) -> Tensor:
    """Entropy (N,) of class probabilities (N, K), in nats."""
    nats: Tensor = torch.special.entr(probabilities).sum(1)
    return nats


def calibration(probabilities: Tensor, y: Tensor) -> dict[str, float]:
    """Error, mean negative log-likelihood, Brier score, ECE and mean entropy.

    Args:
        probabilities: Of the classes, (N, K).
        y: Labels (N,).

    Returns:
        By name. `nll` and `entropy` are in nats. `brier` is the squared distance from the one-hot label, in [0, 2].
        `ece` is the expected calibration error of the most likely class, with 10 bins.
    """
    classes = probabilities.shape[1]
    right = probabilities.gather(1, y[:, None])
    distance = (probabilities - nn.functional.one_hot(y, classes)).square().sum(1)
    values = {
        "error": (probabilities.argmax(1) != y).float().mean(),
        "nll": -right.clamp_min(torch.finfo(right.dtype).tiny).log().mean(),
        "brier": distance.mean(),
        "ece": multiclass_calibration_error(probabilities, y, classes, BINS),
        "entropy": entropy(probabilities).mean(),
    }
    return {name: float(value) for name, value in values.items()}


def reliability(probabilities: Tensor, y: Tensor) -> list[tuple[float, float, int]]:
    """Mean confidence, accuracy and number of samples of every bin that is not empty.

    Args:
        probabilities: Of the classes, (N, K).
        y: Labels (N,).
    """
    confidence, prediction = probabilities.max(1)
    bins = (confidence * BINS).ceil().sub(1).clamp(0, BINS - 1).long()
    found = []
    for inside in (bins == number for number in range(BINS)):
        if count := int(inside.sum()):
            accuracy = (prediction == y)[inside].double().mean()
            found.append((float(confidence[inside].double().mean()), float(accuracy), count))
    return found


def risk_coverage(probabilities: Tensor, y: Tensor) -> Tensor:
    """Error (N,) of the 1, 2, ... N most confident predictions, in float64.

    Geifman & El-Yaniv 2017, "Selective classification for deep neural networks". The confidence is the largest
    probability. Among equal confidences, the expected error of a random order counts. The mean of all values is the
    area under the risk-coverage curve (AURC).

    Args:
        probabilities: Of the classes, (N, K), N at least 1.
        y: Labels (N,).
    """
    confidence, prediction = probabilities.max(1)
    values, group, counts = torch.unique(-confidence, return_inverse=True, return_counts=True)
    wrong = (prediction != y).double()
    mean = torch.zeros_like(values, dtype=torch.float64).scatter_add(0, group, wrong) / counts
    errors = mean.repeat_interleave(counts)
    risks: Tensor = errors.cumsum(0) / torch.arange(1, len(y) + 1, device=y.device)
    return risks
