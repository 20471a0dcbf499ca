"""How well one class is protected (Shen et al., 2021)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Protection:
    """Accuracies around one class.

    Attributes:
        label: The class.
        own: Share of its samples that are classified correctly.
        others: The same of all samples of other classes.
        taken: Share of the samples of other classes that are taken for it.
        overall: Share of all samples that are classified correctly.
    """

    label: int
    own: float
    others: float
    taken: float
    overall: float


def check_protected(labels: NDArray[np.int64], label: int) -> None:
    """Refuse a class that cannot be compared with others.

    Args:
        labels: True classes, (n,).
        label: The class that is looked at.

    Raises:
        ValueError: No sample of this class, or of no other.
    """
    mine = np.count_nonzero(labels == label)
    if mine in (0, len(labels)):
        raise ValueError(
            f"Of {len(labels)} samples {mine} have the protected class {label}; some must, and some must not. "
            "Pass another --protected, or more --examples."
        )


def protection(labels: NDArray[np.int64], predictions: NDArray[np.int64], label: int) -> Protection:
    """Count.

    Args:
        labels: True classes, (n,).
        predictions: Predicted classes, (n,), of clean or of adversarial images.
        label: The class that is looked at.

    Raises:
        ValueError: No sample of this class, or of no other.
    """
    check_protected(labels, label)
    mine, right = labels == label, labels == predictions
    taken = predictions[~mine] == label
    return Protection(
        label, float(right[mine].mean()), float(right[~mine].mean()), float(taken.mean()), float(right.mean())
    )


def mean_protection(found: Sequence[Protection]) -> float:
    """The paper's measure I: mean over classes of the accuracy on each, of the model that protects it."""
    return float(np.mean([one.own for one in found]))
