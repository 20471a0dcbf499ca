"""The samples that a verdict is about."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Samples:
    """Which samples are judged, in which order, and how to get them.

    Attributes:
        ids: Their numbers in the dataset, (n,) int64, in the order of judging; none twice.
        fetch: Gives for some of the ids the images, float32 (N, C, H, W) in [0, 1], and the labels, int64 (N,), both on
            the device that judges. The same ids must always give the same images.
    """

    ids: NDArray[np.int64]
    fetch: Callable[[NDArray[np.int64]], tuple[Tensor, Tensor]]

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> "Samples":
        """All of some tensors, in their order.

        Args:
            x: Images (n, C, H, W), float32 in [0, 1].
            y: Labels (n,), int64.
        """

        def fetch(ids: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
            places = torch.from_numpy(ids).to(x.device)
            return x[places], y[places]

        return cls(np.arange(len(y)), fetch)
