"""Folders of image files."""

import re
from collections.abc import Sequence
from pathlib import Path

from lightning_paf.data.readers.archives import OPENERS

IMAGE_FILE, LABEL_FILE = "image.npy", "label.npy"
HELD_OUT = re.compile(r"(test|validation|valid|val|dev)(?![a-z])")


def array_files(folder: Path) -> list[tuple[Path, Path]]:
    """List the pairs of arrays in a folder.

    A folder has one pair `image.npy` + `label.npy`, or several `NAME.image.npy` + `NAME.label.npy`.

    Returns:
        Image and label file of each pair, sorted by name.

    Raises:
        ValueError: One file of a pair is missing.
    """
    images, labels = (
        {file.name.removesuffix(end) for file in folder.glob(f"*{end}")} for end in (IMAGE_FILE, LABEL_FILE)
    )
    if images != labels:
        name = min(images ^ labels)
        missing = name + (IMAGE_FILE if name in labels else LABEL_FILE)
        raise ValueError(
            f"{folder}: each image file must have a label file and vice versa, got no {missing}. Copy the folder again."
        )
    return [(folder / f"{name}{IMAGE_FILE}", folder / f"{name}{LABEL_FILE}") for name in sorted(images)]


def find_sources(paths: Sequence[Path]) -> list[Path]:
    """Replace each folder of archives by the archives in it.

    Args:
        paths: Archives, folders of arrays, or folders of archives (such as the six parts of cifar5m).

    Raises:
        ValueError: A folder holds none of them, or both training and held-out images; or a source is named twice.
    """
    sources: list[Path] = []
    for path in paths:
        sources += _archives_in(path) if path.is_dir() and not array_files(path) else [path]
    different = {path.resolve(): path for path in sources}
    if len(different) < len(sources):
        raise ValueError(
            f"data.synthetic must name each source once, got {len(sources)} of which {len(different)} are different: "
            f"{', '.join(map(str, sources))}. Leave the repeated ones out."
        )
    return sources


def _archives_in(folder: Path) -> list[Path]:
    inside = sorted(file for file in folder.iterdir() if file.is_file() and file.suffix in OPENERS)
    if not inside:
        raise ValueError(
            f"{folder}: the folder must hold {', '.join(OPENERS)} files or {IMAGE_FILE}, got none. "
            "Check --data.synthetic."
        )
    held_out = [file for file in inside if HELD_OUT.match(file.stem)]
    if held_out and len(held_out) < len(inside):
        raise ValueError(
            f"{folder}: all files of the folder must be training images, got {held_out[0].name}. "
            "Move the training files into a separate folder."
        )
    return inside
