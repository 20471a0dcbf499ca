"""Encoded images of any size, decoded one by one."""

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

MODES = {"1": 1, "L": 1, "LA": 1, "P": 3, "RGB": 3, "RGBA": 3, "CMYK": 3, "YCbCr": 3}
"""Number of channels for each mode of Pillow with at most 8 bits per channel."""


class Pictures(ABC):
    """Encoded images of one part of a dataset, with their labels.

    Attributes:
        class_names: Names of the classes in the order of the labels.
        version: Text that changes whenever an image is added, removed or changed.
    """

    class_names: Sequence[str]
    version: str

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def open(self, index: int) -> "tuple[Image, int]":
        """Open an image, which need not be decoded yet, and return it with its label."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Return the name of an image for messages and predictions."""

    def read(self, index: int, channels: int) -> NDArray[np.uint8]:
        """Decode an image to (H, W, C) with 1 (luma) or 3 channels."""
        return pixels(self.open(index)[0], channels)


def decoded(content: bytes, channels: int) -> NDArray[np.uint8]:
    """Decode an image to (H, W, C), a JPEG without Pillow if possible."""
    from PIL import Image

    decode = _jpeg_decoder() if content.startswith(b"\xff\xd8") else None
    if decode is not None:
        try:
            return decode(content, channels)
        except RuntimeError:  # a colour space or a format that only Pillow reads
            pass
    return pixels(Image.open(io.BytesIO(content)), channels)


@cache
def _jpeg_decoder() -> Callable[[bytes, int], NDArray[np.uint8]] | None:
    """Return the decoder of torchcodec or else torchvision; None without both."""
    import torch

    found: Any
    try:
        from torchcodec import decoders

        found = decoders.decode_jpeg
    except (ImportError, OSError, RuntimeError):  # also if its libraries are missing
        try:
            from torchvision import io

            found = io.decode_jpeg
        except (ImportError, AttributeError):
            return None

    def decode(content: bytes, channels: int) -> NDArray[np.uint8]:
        encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        image: NDArray[np.uint8] = found(encoded, mode="RGB" if channels == 3 else "GRAY").permute(1, 2, 0).numpy()
        return image

    return decode


def check_names(found: Sequence[str], known: Sequence[str], where: str) -> None:
    """Check that all classes are those of the training.

    Raises:
        ValueError: There are others.
    """
    extra = [name for name in found if name not in known]
    if extra:
        raise ValueError(
            f"{where}: all classes must be those of the training ({some(known)}), got {some(extra)} too. Remove or "
            "rename them, or train with them."
        )


def some(names: Sequence[str]) -> str:
    """Return at most ten names as a list."""
    return ", ".join(names[:10]) + (", …" if len(names) > 10 else "") if names else "none"


def pixels(image: "Image", channels: int) -> NDArray[np.uint8]:
    """Convert an image to uint8 (H, W, C) with 1 (luma) or 3 channels."""
    with image:
        return np.array(image.convert("RGB" if channels == 3 else "L")).reshape(image.height, image.width, channels)


def channels_of(image: "Image") -> int:
    """Return the number of channels of an image, 1 or 3; transparency is ignored.

    Raises:
        ValueError: It has more than 8 bits per channel.
    """
    if image.mode not in MODES:
        raise ValueError(f"8 bits per channel are required, got the mode {image.mode}")
    return MODES[image.mode]
