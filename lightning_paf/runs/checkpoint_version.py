"""Which version of the package wrote a checkpoint, and whether this one can read it."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_paf import __version__

KEY = "lightning_paf"
LAYOUT = 1
"""Of what the package adds to checkpoints; raised with every change that older code would misread."""


def stamp() -> dict[str, Any]:
    """What a checkpoint holds under `KEY`."""
    return {"version": __version__, "layout": LAYOUT}


def check_stamp(checkpoint: Mapping[str, Any], name: str | Path) -> None:
    """Refuse a checkpoint of a newer major version, warn of any other but this one.

    Weights that were imported, and checkpoints that are older than stamps, have none and pass.

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
            f"{name} was written by lightning_paf {theirs}, and this is {__version__}: the changelog tells whether a "
            "training that goes on differs from one that was not interrupted.",
            stacklevel=2,
        )


def _major(version: str) -> int:
    """The number before the first dot; 0 where there is none."""
    first = version.partition(".")[0]
    return int(first) if first.isdigit() else 0
