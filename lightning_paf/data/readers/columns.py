"""Arrays of a file that is read in pieces."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Column:
    """One array: its header, and a way to read it in pieces along the first axis.

    Args:
        shape: Shape of the whole array.
        dtype: Its element type.
        chunks: Starts a new pass over the array, in consecutive pieces.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    chunks: Callable[[], Iterator[NDArray[Any]]]


@dataclass(frozen=True)
class Archive:
    """An opened file of images (N, H, W, C) and labels (N,); neither is checked yet."""

    image: Column
    label: Column
