"""Per-example losses, `(output, target) -> (N,)`, for attacks and for training."""

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_entropy(
    logits: Tensor, y: Tensor, label_smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Cross-entropy of the softmax.

    Args:
        logits: (N, C).
        y: Labels (N,) int64, or a distribution over the classes (N, C).
        label_smoothing: Fraction of the target, in [0, 1), spread evenly over all classes.
        class_weights: Factor of each class (C,), by default 1.

    Returns:
        (N,), at least 0.
    """
    return F.cross_entropy(logits, y, class_weights, reduction="none", label_smoothing=label_smoothing)


def kl_divergence(logits: Tensor, p: Tensor) -> Tensor:
    """`KL(p || softmax(logits))`, as in TRADES (Zhang et al. 2019, eq. 5).

    Args:
        logits: (N, C).
        p: Distribution over the classes (N, C), zeros allowed; or labels (N,) int64, for which the divergence is the
            cross-entropy.

    Returns:
        (N,), at least 0 up to rounding.
    """
    if not p.is_floating_point():
        return cross_entropy(logits, p)
    # A zero stays zero; the clamp keeps the derivative with respect to p finite there (0 log 0 has slope -inf).
    log_p = p.clamp_min(torch.finfo(p.dtype).tiny).log()
    return (p * (log_p - logits.log_softmax(dim=1))).sum(dim=1)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Margin `max_{j != y} z_j - z_y` (Carlini & Wagner 2017).

    It is negative exactly where the example is classified correctly.

    Args:
        logits: (N, C), C >= 2.
        y: Labels (N,) int64, or a distribution over the classes (N, C), whose most likely class is the label.

    Returns:
        (N,), in units of the logits.
    """
    y = hard_labels(y)
    own = logits.gather(1, y[:, None]).squeeze(1)
    return _largest_other(logits, y) - own


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference-of-logits ratio (Croce & Hein 2020, eq. 6).

    This is the margin over `z_(1) - z_(3)` of the sorted logits. Unlike the margin, it is invariant to scaling and
    shifting the logits.

    Args:
        logits: (N, C), C >= 3.
        y: Labels (N,) int64, or a distribution over the classes (N, C), whose most likely class is the label.

    Returns:
        (N,), in [-1, 1] if the label is among the three largest logits.

    Raises:
        ValueError: Fewer than three classes, for which the ratio is undefined.
    """
    if logits.shape[1] < 3:
        raise ValueError(
            f"The number of classes must be at least 3 for the DLR loss, got {logits.shape[1]}. "
            "Use lightning_paf.functional.margin, which ranks two classes in the same way."
        )
    top = logits.topk(3, dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)


def centred_targets(y: Tensor, num_classes: int) -> Tensor:
    """One-hot minus 1/C, (N, C), whose rows sum to 0.

    Args:
        y: Labels (N,) int64, or a distribution over the classes (N, C).
        num_classes: Number of classes C.
    """
    one_hot = y if y.is_floating_point() else F.one_hot(y, num_classes).to(torch.get_default_dtype())
    return one_hot - 1 / num_classes


def squared_error(logits: Tensor, y: Tensor) -> Tensor:
    """Half the squared distance to `centred_targets`, (N,).

    Args:
        logits: (N, C).
        y: Labels (N,) int64, or a distribution over the classes (N, C).
    """
    return (logits - centred_targets(y, logits.shape[1])).square().sum(1) / 2


def squared_distance(output: Tensor, target: Tensor) -> Tensor:
    """Squared l2 distance (N,) of images (N, C, H, W)."""
    return (output - target).square().flatten(1).sum(1)


def hard_labels(y: Tensor) -> Tensor:
    """Labels (N,) int64; the most likely class of a distribution (N, C)."""
    return y.argmax(dim=1) if y.is_floating_point() else y


def _largest_other(logits: Tensor, y: Tensor) -> Tensor:
    """Largest logit (N,) of a class other than `y`."""
    return logits.scatter(1, y[:, None], -torch.inf).amax(dim=1)
