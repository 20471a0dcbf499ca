"""Labelled volumes of the Medical Segmentation Decathlon, as uint8 slices."""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

IGNORED = 255
"""Value of mask pixels that belong to no class and are not evaluated."""
Window = tuple[float, float] | None
"""Intensities of black and white; None for the 0.5 and 99.5 % quantiles."""


class Subject(NamedTuple):
    """The slices of one volume.

    Args:
        name: Name of the volume.
        images: uint8 (S, H, W, C).
        masks: uint8 (S, H, W): 0 for background, labels of classes, `IGNORED`.
    """

    name: str
    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]


class Task(NamedTuple):
    """A folder with `dataset.json`.

    Args:
        labels: Values that masks can have.
        files: Paths of volume and mask of each subject, sorted.
    """

    labels: frozenset[int]
    files: Sequence[tuple[Path, Path]]


def find_volumes(folder: Path, option: str) -> Task:
    """Read the `dataset.json` of a folder, and check that its files exist.

    Raises:
        ValueError: nibabel is not installed; the description or a file is missing or damaged.
    """
    _nibabel()
    try:
        content = json.loads((folder / "dataset.json").read_text())
        labels = frozenset(int(value) for value in content["labels"])
        files = sorted((folder / pair["image"], folder / pair["label"]) for pair in content["training"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{option} must be a folder in the layout of the Medical Segmentation Decathlon, with a dataset.json that "
            f"names labels and training volumes, got {folder}: {error!r}. Pass {option} FOLDER."
        ) from error
    for path in (path for pair in files for path in pair):
        if not path.is_file():
            raise ValueError(f"{folder / 'dataset.json'} must name existing files, got {path}. Extract them again.")
    if not labels <= set(range(IGNORED)):
        raise ValueError(
            f"{folder / 'dataset.json'} must have labels from 0 to {IGNORED - 1}, got {sorted(labels)}. Renumber them."
        )
    return Task(labels, files)


def read_volume(files: tuple[Path, Path], labels: frozenset[int], window: Window, channels: int, size: int) -> Subject:
    """Read a volume and its mask as resized slices along the third axis.

    Args:
        files: Paths of volume and mask.
        labels: Values of the mask, besides `IGNORED`.
        window: Intensities of black and white.
        channels: Channels of the slices: modalities of a volume with four axes, otherwise copies.
        size: Height and width of the slices.

    Raises:
        ValueError: A damaged file; infinite intensities; a mask of another size than the volume or with an undeclared
            value.
    """
    volume, mask = (_read(path) for path in files)
    if volume.ndim == 4 and volume.shape[3] >= channels:
        volume = volume[..., :channels]
    elif volume.ndim == 3:
        volume = np.repeat(volume[..., None], channels, axis=3)
    else:
        raise ValueError(
            f"{files[0]} must have three axes, or four with at least {channels} modalities, got shape {volume.shape}. "
            "Pass another --data.channels."
        )
    if mask.shape != volume.shape[:3]:
        raise ValueError(
            f"{files[1]} must have the shape {volume.shape[:3]} of its volume, got {mask.shape}. Remove both."
        )
    if bad := np.count_nonzero(~np.isfinite(volume)):
        raise ValueError(
            f"{files[0]} must hold finite intensities, got NaN or infinity in {bad} voxels. Replace them, or remove "
            "the volume."
        )
    if unknown := set(np.unique(mask).tolist()) - labels - {IGNORED}:
        raise ValueError(
            f"{files[1]} must hold the labels {sorted(labels)} of dataset.json, got {sorted(unknown)[:5]}. Correct "
            "dataset.json, or remove the volume."
        )
    low, high = np.quantile(volume, (0.005, 0.995)) if window is None else window
    grey = (volume - low) / max(high - low, 1e-6)
    images = torch.from_numpy(grey.clip(0, 1).transpose(2, 3, 1, 0).astype(np.float32))
    images = F.interpolate(images, (size, size), mode="bilinear", antialias=True).mul(255).round().byte()
    masks = F.interpolate(torch.from_numpy(mask.transpose(2, 1, 0).astype(np.uint8))[:, None], (size, size))
    return Subject(files[0].name.split(".")[0], images.permute(0, 2, 3, 1).contiguous().numpy(), masks[:, 0].numpy())


def _read(path: Path) -> NDArray[np.float32]:
    """Read an array with the axes right, anterior, superior."""
    nibabel = _nibabel()
    try:
        image = nibabel.as_closest_canonical(nibabel.load(path))
        return np.asarray(image.dataobj, np.float32)
    except (OSError, EOFError, ValueError, zlib.error, nibabel.filebasedimages.ImageFileError) as error:
        raise ValueError(f"{path} must be a readable NIfTI file, got: {error}. Copy it again, or remove it.") from error


def _nibabel() -> Any:
    try:
        import nibabel
    except ImportError as error:
        raise ValueError(
            "nibabel must be installed for NIfTI volumes. Run pip install 'lightning-paf[volumes]', or omit "
            "--data.train_dir and --data.test_dir for synthetic volumes."
        ) from error
    return nibabel
