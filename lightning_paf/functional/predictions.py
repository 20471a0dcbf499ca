"""Predicted classes, misclassification, and validation of labels."""

import math
from typing import Any

import torch
from torch import Tensor

from lightning_paf.functional.losses import hard_labels

NO_PREDICTION = -1
"""Predicted class of undefined logits; it equals no label."""


def undefined(output: Tensor) -> Tensor:
    """Mask (N,) of rows with a NaN or infinite entry.

    A network that overflows has no prediction, since the order of such logits depends on the hardware.
    """
    # 0 * inf and 0 * NaN are NaN; this takes fewer operations than `isfinite` in the inner loop of attacks.
    return (0 * output.detach().unsqueeze(-1).flatten(1)).sum(1) != 0


def known_finite(*values: Any) -> bool:
    """Return whether all entries of tensors on the CPU are finite.

    False if that is unknown: for other objects, sums that overflow, and other devices, which would have to synchronise.
    """
    known = all(isinstance(part, Tensor) and part.device.type == "cpu" for part in values)
    return known and math.isfinite(sum(part.detach().sum().item() for part in values))


def predicted(logits: Tensor) -> Tensor:
    """Predicted classes (N,) int64; `NO_PREDICTION` for logits that are not finite."""
    return torch.where(undefined(logits), NO_PREDICTION, logits.argmax(dim=1))


def misclassified(logits: Tensor, y: Tensor) -> Tensor:
    """Mask (N,) of the misclassified rows.

    It includes all rows with a NaN or infinite logit.

    Args:
        logits: (N, C).
        y: Labels (N,) int64, or a distribution over the classes (N, C), whose most likely class is the label.
    """
    return predicted(logits) != hard_labels(y)


def undefined_first(values: Tensor, output: Any) -> Tensor:
    """Losses (N,) to compare adversarial images; infinite where undefined.

    Such images are misclassified, so they get the largest loss; comparisons with NaN are always false.

    Args:
        values: Losses (N,), larger is better.
        output: Network output of these losses; its rows are examined if it is a tensor.
    """
    worst = values.isnan()
    if isinstance(output, Tensor):
        worst = worst | undefined(output)
    return torch.where(worst, torch.inf, values)


def check_labels(y: Tensor, count: int, classes: int | None = None, soft: bool = True) -> None:
    """Check that `y` holds one label for every image.

    Args:
        y: Labels (N,) int64, or distributions over the classes (N, C), floating point.
        count: Number of images.
        classes: Number of classes, if known.
        soft: Whether distributions are allowed.

    Raises:
        ValueError: Wrong shape or type, or a label out of range.
    """
    hint = "Pass e.g. y.long().flatten()."
    if y.is_floating_point():
        fits = soft and y.dim() == 2 and len(y) == count and classes in (None, y.shape[1])
        found = f"{y.dtype} of shape {tuple(y.shape)}"
    else:
        fits, found = y.dtype == torch.int64 and y.shape == (count,), f"{y.dtype} of shape {tuple(y.shape)}"
        if fits and count:
            low, high = (int(limit) for limit in y.aminmax())
            fits, found = low >= 0 and (classes is None or high < classes), f"labels from {low} to {high}"
            hint = "Number the classes from 0, and pass a model of all classes."
    if not fits:
        limit = "" if classes is None else f" below {classes}"
        more = f" (or floating-point probabilities of shape ({count}, classes))" if soft else ""
        raise ValueError(f"y must be class labels of shape ({count},), int64, from 0{limit}{more}, got {found}. {hint}")
