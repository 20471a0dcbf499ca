"""Names for the types that all layers share."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any, Literal

from torch import Tensor

Radius = float | Fraction
"""A distance between images in [0, 1]: `0.031` or `8/255` (the fraction is kept, and printed back as written)."""

Norm = Literal["linf", "l2", "l1"]
"""The norm that measures a perturbation."""

Forward = Callable[[Tensor], Any]
"""How an attack calls what it attacks: images (N, C, H, W) to any output that the loss understands."""

PerExampleLoss = Callable[[Any, Tensor], Tensor]
"""`(output, target) -> (N,)`; larger is better for the attacker."""

Batch = tuple[Tensor, Tensor]
"""Images (N, C, H, W) float in [0, 1], labels (N,) int64 or distributions over the classes (N, num_classes)."""
