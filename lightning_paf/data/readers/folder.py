"""Folders of image files."""

import re
from collections.abc import Sequence
from pathlib import Path

from lightning_paf.data.readers.archives import OPENERS

IMAGE_FILE, LABEL_FILE = "image.npy", "label.npy"
HELD_OUT = re.compile(r"(test|validation|valid|val|dev)(?![a-z])")


def array_files(folder: Path) -> list[tuple[Path, Path]]:
    """List the pairs of arrays in a folder: `image.npy` + `label.npy`, or several `NAME.image.npy` + `NAME.label.npy`.

    Returns:
        Image and label file of each pair, in the order of their names; nothing for a folder without arrays.

    Raises:
        ValueError: One file of a pair is missing.
    """
    images, labels = (
        {file.name.removesuffix(end) for file in folder.glob(f"*{end}")} for end in (IMAGE_FILE, LABEL_FILE)
    )
    if images != labels:
        name = min(images ^ labels)
        missing = name + (IMAGE_FILE if name in labels else LABEL_FILE)
        raise ValueError(f"{folder}: images and labels must come in pairs, but {missing} is missing. Copy it again.")
    return [(folder / f"{name}{IMAGE_FILE}", folder / f"{name}{LABEL_FILE}") for name in sorted(images)]


def find_sources(paths: Sequence[Path]) -> list[Path]:
    """List the archives, and the folders of arrays, that `paths` stand for.

    Args:
        paths: Archives, folders of arrays, or folders of archives (such as the six parts of cifar5m).

    Raises:
        ValueError: A folder holds none of them, or test images next to others.
    """
    sources: list[Path] = []
    for path in paths:
        sources += _archives_in(path) if path.is_dir() and not array_files(path) else [path]
    return sources


def _archives_in(folder: Path) -> list[Path]:
    inside = sorted(file for file in folder.iterdir() if file.is_file() and file.suffix in OPENERS)
    if not inside:
        raise ValueError(
            f"{folder}: this folder holds no {', '.join(OPENERS)} file and no {IMAGE_FILE}. Check --data.synthetic."
        )
    held_out = [file for file in inside if HELD_OUT.match(file.stem)]
    if held_out and len(held_out) < len(inside):
        raise ValueError(
            f"{folder}: all files of a folder are trained on, but {held_out[0].name} is held out by its name. "
            "Put the training files into a separate folder."
        )
    return inside
