"""Small encodings of adversarial images: decoded alike on every machine, and checked before one is chosen."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_paf.functional.geometry import geometry_of
from lightning_paf.types import Norm

Images = NDArray[np.float32]
"""Images (N, C, H, W) in [0, 1]."""

_SLACK: Mapping[Norm, tuple[float, float]] = MappingProxyType(
    {"linf": (2**-24, 0.0), "l2": (0.0, 1e-6), "l1": (0.0, 1e-6)}
)
"""By how much a perturbation may exceed eps, absolute and relative. An attack works in single precision, where a pixel
near 1 is rounded by up to half a unit in the last place, 2^-24, and a sum over all pixels by more."""

SAFE_GAP = 1e-4
"""How far the strongest wrong logit lies above the right one, over the largest logit, so that the rounding of another
machine does not turn the prediction."""


@dataclass(frozen=True)
class Ball:
    """Where a perturbed image may lie.

    Attributes:
        norm: `linf`, `l2` or `l1`.
        eps: Radius, as an exact fraction.
    """

    norm: Norm
    eps: Fraction

    @property
    def limit(self) -> float:
        """The largest size that counts as eps: half a unit in the last place of 1 more, or (l2, l1) a millionth."""
        absolute, relative = _SLACK[self.norm]
        return float(self.eps) * (1 + relative) + absolute

    def size(self, x: Images, x_adv: Images) -> NDArray[np.float64]:
        """Norm of each difference, (N,), in double precision."""
        difference = torch.from_numpy(x_adv.astype(np.float64) - x.astype(np.float64))
        size: NDArray[np.float64] = geometry_of(self.norm).size(difference).numpy()
        return size


def in_box(x_adv: Images) -> NDArray[np.bool_]:
    """Which images lie in [0, 1], (N,)."""
    return np.asarray(((x_adv >= 0) & (x_adv <= 1)).reshape(len(x_adv), -1).all(axis=1))


class Encoding(ABC):
    """How a perturbed image is written down, given the clean one. Stateless."""

    name: ClassVar[str]
    """Name of the tensor of all images in this encoding."""

    dtype: ClassVar[type[np.generic]]
    """Of that tensor."""

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    """Where the encoding is of use."""

    @abstractmethod
    def row(self, image: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one encoded image, given the shape (C, H, W) of the image."""

    @abstractmethod
    def encode(self, x: Images, x_adv: Images) -> NDArray[Any]:
        """Encode images, (N, *row); decoding need not give them back."""

    @abstractmethod
    def decode(self, x: Images, rows: NDArray[Any], eps: Fraction) -> Images:
        """Decode images from the clean ones and `encode`'s rows."""

    def fault(self, rows: NDArray[Any], image: tuple[int, ...]) -> str | None:
        """What `encode` would never write, or None."""
        del image
        return None if np.isfinite(rows).all() else "holds a number that is not finite"


class Signs(Encoding):
    """`x + eps * s` with s in {-1, 0, 1}: a bit for "changed" and a bit for "darker" a pixel."""

    name = "signs"
    dtype = np.uint8
    norms = ("linf",)

    def row(self, image: tuple[int, ...]) -> tuple[int, ...]:
        """Two planes of bits, each padded with zeros to whole bytes."""
        return 2, -(-int(np.prod(image)) // 8)

    def encode(self, x: Images, x_adv: Images) -> NDArray[Any]:
        """The signs of the differences; a difference that the pixel range has cut counts as a whole one."""
        flat = (x_adv.astype(np.float64) - x).reshape(len(x), -1)
        return np.packbits(np.stack([flat != 0, flat < 0], axis=1), axis=-1)

    def decode(self, x: Images, rows: NDArray[Any], eps: Fraction) -> Images:
        """Add eps, rounded down to single precision, with the signs."""
        changed, darker = np.unpackbits(rows, axis=-1, count=int(np.prod(x.shape[1:]))).astype(bool).transpose(1, 0, 2)
        step = np.float32(float(eps))
        if float(step) > float(eps):
            step = np.nextafter(step, np.float32(0))
        delta = np.where(changed, np.where(darker, -step, step), np.float32(0))
        return _add(x, delta.reshape(x.shape))

    def fault(self, rows: NDArray[Any], image: tuple[int, ...]) -> str | None:
        """Bits of padding, or a pixel that is darker but not changed."""
        bits = np.unpackbits(rows, axis=-1)
        if bits[..., int(np.prod(image)) :].any():
            return "has bits beyond the last pixel"
        return "has a sign where nothing is changed" if (rows[:, 1] & ~rows[:, 0]).any() else None


class Float16(Encoding):
    """The difference in half precision, rounded towards zero: it stays in every ball that the difference is in."""

    name = "float16"
    dtype = np.float16

    def row(self, image: tuple[int, ...]) -> tuple[int, ...]:
        """As the image."""
        return image

    def encode(self, x: Images, x_adv: Images) -> NDArray[Any]:
        """Round the differences."""
        delta = x_adv.astype(np.float64) - x
        half = delta.astype(np.float16)
        towards_zero = np.nextafter(half, np.float16(0))
        return np.where(np.abs(half.astype(np.float64)) > np.abs(delta), towards_zero, half)

    def decode(self, x: Images, rows: NDArray[Any], eps: Fraction) -> Images:
        """Add the differences."""
        del eps
        return _add(x, rows.astype(np.float32))


class Float32(Encoding):
    """The adversarial image itself: a difference in single precision would not always lead back to it."""

    name = "float32"
    dtype = np.float32

    def row(self, image: tuple[int, ...]) -> tuple[int, ...]:
        """As the image."""
        return image

    def encode(self, x: Images, x_adv: Images) -> NDArray[Any]:
        """The images."""
        del x
        return x_adv

    def decode(self, x: Images, rows: NDArray[Any], eps: Fraction) -> Images:
        """The images."""
        del x, eps
        return rows


NONE = 0
"""Code of a sample without an adversarial image."""

ENCODINGS: tuple[Encoding, ...] = (Signs(), Float16(), Float32())
"""The smallest first. The code of an encoding is its place, counted from 1."""


@dataclass(frozen=True)
class Encoded:
    """Images in their smallest encodings.

    Attributes:
        codes: One for each image, (N,) uint8; `NONE` where no encoding is valid and fools the model.
        rows: One for each image; None where the code is `NONE`.
        predictions: Of the model on the decoded images, (N,) int64; -1 where the code is `NONE`.
    """

    codes: NDArray[np.uint8]
    rows: list[NDArray[Any] | None]
    predictions: NDArray[np.int64]


def encode_smallest(
    x: Images,
    x_adv: Images,
    labels: NDArray[np.int64],
    ball: Ball,
    judge: Callable[[Images, NDArray[np.int64]], tuple[NDArray[np.int64], NDArray[np.float64]]],
) -> Encoded:
    """Choose for every image the smallest encoding that decodes to a valid adversarial example.

    Valid means: in [0, 1], in the ball, misclassified. In a first round the misclassification must be clear, so that it
    also shows on other hardware; what no encoding makes clear is taken as it comes in a second.

    Args:
        x: Clean images (N, C, H, W).
        x_adv: Adversarial images, shaped like `x`.
        labels: What the images show, (N,).
        ball: The threat model.
        judge: Gives for decoded images (M, C, H, W) and their places (M,) in `x` the predictions (M,) and the gaps
            (M,): strongest wrong logit minus that of the label, over the largest logit.
    """
    result = Encoded(np.zeros(len(x), np.uint8), [None] * len(x), np.full(len(x), -1, np.int64))
    for clear in (True, False):
        for code, encoding in enumerate(ENCODINGS, start=1):
            left = np.flatnonzero(result.codes == NONE)
            if len(left) == 0 or ball.norm not in encoding.norms:
                continue
            rows = encoding.encode(x[left], x_adv[left])
            decoded = encoding.decode(x[left], rows, ball.eps)
            predictions, gaps = judge(decoded, left)
            wrong = (predictions != labels[left]) & (~np.bool_(clear) | (gaps > SAFE_GAP))
            valid = wrong & in_box(decoded) & (ball.size(x[left], decoded) <= ball.limit)
            result.codes[left[valid]] = code
            result.predictions[left] = np.where(valid, predictions, -1)
            for place in np.flatnonzero(valid):
                result.rows[left[place]] = rows[place].copy()
    return result


def _add(x: Images, delta: Images) -> Images:
    """`x + delta` in single precision, rounded towards `x` where the nearest is further away, then cut to [0, 1]."""
    moved = x + delta
    too_far = np.abs(moved.astype(np.float64) - x) > np.abs(delta)
    return np.where(too_far, np.nextafter(moved, x), moved).clip(0, 1)
