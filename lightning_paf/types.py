"""Types shared by all layers."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any, Literal

from torch import Tensor

Radius = float | Fraction
"""Distance between images in [0, 1], as `0.031` or the exact `8/255`."""

Norm = Literal["linf", "l2", "l1"]
"""The norm of a perturbation."""

Forward = Callable[[Tensor], Any]
"""An attacked model: images (N, C, H, W) to any output that the loss accepts."""

PerExampleLoss = Callable[[Any, Tensor], Tensor]
"""`(output, target) -> (N,)`; larger is better for the attacker."""

Batch = tuple[Tensor, Tensor]
"""Images (N, C, H, W) float in [0, 1], and labels (N,) int64.

Labels can also be distributions over the classes (N, num_classes).
"""


def images_and_labels(batch: Any) -> Batch:
    """Return a batch of any loader as images and labels, with integer labels as int64.

    Raises:
        ValueError: The batch is not a pair of tensors.
    """
    if not (isinstance(batch, list | tuple) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)):
        found = f"{type(batch).__name__} of length {len(batch)}" if hasattr(batch, "__len__") else type(batch).__name__
        raise ValueError(
            f"A batch must be the two tensors (images, labels), got {found}. Return (images, labels) from the dataset."
        )
    images, labels = batch
    return images, labels if labels.is_floating_point() else labels.long()
