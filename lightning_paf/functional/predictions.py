"""Predicted classes and misclassification, for all counts of correct or robust images."""

from typing import Any

import torch
from torch import Tensor

from lightning_paf.functional.losses import hard_labels

NO_PREDICTION = -1
"""Predicted class of undefined logits; it equals no label."""


def undefined(output: Tensor) -> Tensor:
    """Which rows (N,) of an output (N, ...) hold a NaN or an infinity, bool.

    A network that overflows has no prediction: float arithmetic elsewhere may order the same logits differently.
    """
    # 0 * inf is NaN, so is 0 * NaN; fewer operations than `isfinite`, which some searches call thousands of times.
    return (0 * output.detach().unsqueeze(-1).flatten(1)).sum(1) != 0


def predicted(logits: Tensor) -> Tensor:
    """Predicted classes (N,) int64 of logits (N, C); `NO_PREDICTION` where a logit is NaN or infinite."""
    return torch.where(undefined(logits), NO_PREDICTION, logits.argmax(dim=1))


def misclassified(logits: Tensor, y: Tensor) -> Tensor:
    """Which rows are classified wrongly, (N,) bool; rows with a NaN or infinite logit are.

    Args:
        logits: (N, C).
        y: Labels (N,) int64, or a distribution over the classes (N, C), which stands for its likeliest class.
    """
    return predicted(logits) != hard_labels(y)


def undefined_first(values: Tensor, output: Any) -> Tensor:
    """Losses (N,) as a search for adversarial images compares them: infinite where undefined.

    An image with undefined logits is misclassified, so no other image is a better result. NaN would compare as worse
    than every number.

    Args:
        values: Losses (N,), larger is better.
        output: Network output that they were computed from; rows are only examined where it is a tensor.
    """
    worst = values.isnan()
    if isinstance(output, Tensor):
        worst = worst | undefined(output)
    return torch.where(worst, torch.inf, values)


def check_labels(y: Tensor, count: int, classes: int | None = None) -> None:
    """Check that `y` holds one label for every image.

    Args:
        y: Labels (N,) int64, or distributions over the classes (N, C), floating point.
        count: Number of images.
        classes: Number of classes, where it is known.

    Raises:
        ValueError: Another shape or type; a label outside the classes.
    """
    if y.is_floating_point():
        fits = y.dim() == 2 and len(y) == count and classes in (None, y.shape[1])
        found = f"{y.dtype} of shape {tuple(y.shape)}"
    else:
        fits, found = y.dtype == torch.int64 and y.shape == (count,), f"{y.dtype} of shape {tuple(y.shape)}"
        if fits and count:
            low, high = (int(limit) for limit in y.aminmax())
            fits, found = low >= 0 and (classes is None or high < classes), f"labels from {low} to {high}"
    if not fits:
        limit = "" if classes is None else f" below {classes}"
        raise ValueError(
            f"y must be class labels of shape ({count},), int64, from 0{limit} (or floating-point probabilities of "
            f"shape ({count}, classes)), got {found}. Pass e.g. y.long().flatten()."
        )
