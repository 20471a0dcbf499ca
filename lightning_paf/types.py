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
