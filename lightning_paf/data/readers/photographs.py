"""Photographs of any size, read into memory as uint8 (H, W, C)."""

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")
"""Modes of Pillow with at most 8 bits per channel."""
PACKAGED = {
    "train": ("astronaut.png", "brick.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "motorcycle_left.png"),
    "val": ("clock_motion.png", "coffee.png"),
    "test": (
        *("camera.png", "chelsea.png", "coins.png", "moon.png", "rocket.jpg"),
        *("cell.png", "ihc.png", "page.png", "retina.jpg", "text.png"),
    ),
}
"""Photographs that are installed with scikit-image."""


def find_photographs(folder: Path, option: str) -> list[Path]:
    """List the image files of a folder and its subfolders, sorted by their paths.

    Raises:
        ValueError: The folder does not exist, or holds no image file.
    """
    if not folder.is_dir():
        raise ValueError(f"{option} must be a folder of photographs, got {folder}. Pass {option} FOLDER.")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise ValueError(
            f"{option} must hold photographs ({', '.join(SUFFIXES)}), got none in {folder}. Pass {option} FOLDER."
        )
    return files


def paired_photographs(folder: Path, names: tuple[str, str]) -> tuple[list[Path], list[Path]]:
    """List photographs with real noise, and clean ones of the same scenes.

    Args:
        folder: Folder with both, also in subfolders.
        names: Parts of the paths below the folder, of noisy and of clean photographs, such as (real, mean) for PolyU
            and (NOISY, GT) for SIDD. The last occurrence counts.

    Raises:
        ValueError: No noisy photograph, or a clean one is missing.
    """
    noisy, clean = names
    files = [path for path in find_photographs(folder, "--data.test_dir") if noisy in str(path.relative_to(folder))]
    if not files or not noisy or noisy == clean:
        raise ValueError(
            f"--data.pairs must be two different parts of the paths below {folder}, got {[*names]}, which fit no noisy "
            "photograph. Pass --data.pairs '[NOISY, GT]' for SIDD, '[real, mean]' for PolyU."
        )
    pairs = [folder / clean.join(str(path.relative_to(folder)).rsplit(noisy, 1)) for path in files]
    for path, pair in zip(files, pairs, strict=True):
        if not pair.is_file():
            raise ValueError(f"{path} must have a clean photograph {pair}, got none. Copy it, or remove the noisy one.")
    return files, pairs


def packaged_photographs(part: str, option: str) -> list[Path]:
    """List the photographs of scikit-image for `train`, `val` or `test`.

    Raises:
        ValueError: scikit-image is not installed.
    """
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        raise ValueError(
            f"{option} must be a folder of photographs, or scikit-image must be installed for its photographs, got "
            f"neither. Pass {option} FOLDER, or run pip install 'lightning-paf[photographs]'."
        )
    return [Path(found.origin).parent / "data" / name for name in PACKAGED[part]]


def read_photograph(path: Path, channels: int, smallest: int, crop: int | None = None) -> NDArray[np.uint8]:
    """Read a photograph as uint8 (H, W, C), grey (luma) or RGB.

    Args:
        path: Image file with 8 bits per channel.
        channels: 1 or 3; others are converted.
        smallest: Required height and width.
        crop: Largest height and width; the middle of larger photographs is kept.

    Raises:
        ValueError: The file is damaged, has more than 8 bits per channel, or is too small.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            mode = image.mode
            pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"), np.uint8)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} must be a readable image, got: {error}. Copy it again, or remove it.") from error
    if mode not in MODES:
        raise ValueError(f"{path} must have 8 bits per channel, got the mode {mode}. Convert it, or remove it.")
    if min(pixels.shape[:2]) < smallest:
        height, width = pixels.shape[:2]
        raise ValueError(
            f"{path} must have at least {smallest} x {smallest} pixels, got {height} x {width}. Remove it, or pass a "
            "smaller --data.patch."
        )
    pixels = pixels.reshape(*pixels.shape[:2], channels)
    if crop is None:
        return pixels
    top, left = (max(0, side - crop) // 2 for side in pixels.shape[:2])
    return np.ascontiguousarray(pixels[top : top + crop, left : left + crop])


class Patches:
    """Square patches of photographs, indexed like an array (N, patch, patch, C).

    They are cut when they are used, so overlapping patches need no memory.

    Args:
        photographs: Images uint8 (H, W, C), each at least as large as a patch.
        patch: Height and width of a patch.
        stride: Distance of neighbouring patches.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, photographs: Sequence[NDArray[np.uint8]], patch: int, stride: int) -> None:
        self.photographs, self.patch, self.stride = photographs, patch, stride
        grids = [[(side - patch) // stride + 1 for side in image.shape[:2]] for image in photographs]
        self._columns = [columns for _, columns in grids]
        self._ends = np.cumsum([rows * columns for rows, columns in grids])

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Number of patches, and shape of one."""
        return int(self._ends[-1]), self.patch, self.patch, self.photographs[0].shape[2]

    def __getitem__(self, index: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Cut the patches of these indices (n,)."""
        cut = np.empty((len(index), *self.shape[1:]), np.uint8)
        for row, (number, top, left) in zip(cut, self._corners(index), strict=True):
            row[:] = self.photographs[number][top : top + self.patch, left : left + self.patch]
        return cut

    def _corners(self, index: NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
        """Yield the photograph and the first row and column of each patch."""
        for one, number in zip(index.tolist(), np.searchsorted(self._ends, index, side="right").tolist(), strict=True):
            before = int(self._ends[number - 1]) if number else 0
            row, column = divmod(one - before, self._columns[number])
            yield number, row * self.stride, column * self.stride


class PhotographBatch(NamedTuple):
    """Photographs of different sizes.

    Args:
        images: uint8 (H, W, C), each.
        numbers: Indices in the dataset (N,), int64.
        noisy: Photographs of the same scenes with real noise, or none.
    """

    images: list[Tensor]
    numbers: Tensor
    noisy: list[Tensor]


class PhotographDataset(Dataset[PhotographBatch]):
    """Whole photographs in memory, in their order.

    Args:
        photographs: Images uint8 (H, W, C).
        names: Their names.
        noisy: The same scenes with real noise, or none.
    """

    def __init__(
        self, photographs: Sequence[NDArray[np.uint8]], names: Sequence[str], noisy: Sequence[NDArray[np.uint8]] = ()
    ) -> None:
        self.photographs, self.names, self.noisy = photographs, list(names), noisy

    def __len__(self) -> int:
        return len(self.photographs)

    def __getitem__(self, index: int) -> PhotographBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> PhotographBatch:
        """Fetch the batch of these indices."""
        images, noisy = (
            [torch.from_numpy(part[index].copy()) for index in indices if part]
            for part in (self.photographs, self.noisy)
        )
        return PhotographBatch(images, torch.tensor(list(indices)), noisy)
