"""The samples of an evaluation."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_paf.functional.predictions import check_labels


@dataclass(frozen=True)
class Samples:
    """Samples in the order of their evaluation, read on demand.

    Attributes:
        ids: Indices in the dataset, (n,) int64, without duplicates.
        fetch: Maps some of the ids to images, float32 (N, C, H, W) in [0, 1], and labels, int64 (N,), both on the
            device of the evaluation. Equal ids must give equal images.
    """

    ids: NDArray[np.int64]
    fetch: Callable[[NDArray[np.int64]], tuple[Tensor, Tensor]]

    def __len__(self) -> int:
        return len(self.ids)

    def checked(self, ids: NDArray[np.int64], classes: int) -> tuple[Tensor, Tensor]:
        """Fetch images and labels for a model with this number of classes.

        Raises:
            ValueError: A label is not one of the classes.
        """
        x, y = self.fetch(ids)
        check_labels(y, len(ids), classes, soft=False)
        return x, y

    @classmethod
    def of(cls, x: Tensor, y: Tensor, device: torch.device | None = None) -> "Samples":
        """Build samples from images (n, C, H, W) and labels (n,).

        The default device is that of the images.
        """

        def fetch(ids: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
            indices = torch.from_numpy(ids).to(x.device)
            return x[indices].to(device), y[indices].to(device)

        return cls(np.arange(len(y)), fetch)
