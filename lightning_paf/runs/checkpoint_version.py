"""Version of the package that wrote a checkpoint, and whether this version can read it."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_paf import __version__

KEY = "lightning_paf"
"""Entry of a checkpoint that holds `checkpoint_version()`."""
LAYOUT = 1
"""Number of the layout of the package's own entries; raised with every change that older code would misread."""


def checkpoint_version() -> dict[str, Any]:
    """Return the version of checkpoints that this package writes."""
    return {"version": __version__, "layout": LAYOUT}


def check_checkpoint_version(checkpoint: Mapping[str, Any], name: str | Path) -> None:
    """Refuse a checkpoint of a newer major version, and warn of any other version.

    Imported weights and old checkpoints have no version and pass.

    Args:
        checkpoint: The content.
        name: The file, for the message.

    Raises:
        ValueError: Only a newer version can read it.
    """
    if KEY not in checkpoint:
        return
    theirs = str(checkpoint[KEY]["version"])
    if _major(theirs) > _major(__version__) or checkpoint[KEY]["layout"] > LAYOUT:
        raise ValueError(
            f"A checkpoint is read by the version that wrote it or a newer one, but {name} is of lightning_paf "
            f"{theirs} and this is {__version__}. Install lightning_paf {theirs}, or pass another --ckpt_path."
        )
    if theirs != __version__:
        warnings.warn(
            f"{name} was written by lightning_paf {theirs}, and this is {__version__}. The changelog says whether a "
            "resumed training differs from an uninterrupted one.",
            stacklevel=2,
        )


def _major(version: str) -> int:
    """Return the number before the first dot; 0 where there is none."""
    first = version.partition(".")[0]
    return int(first) if first.isdigit() else 0
