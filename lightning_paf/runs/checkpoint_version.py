"""Version of the package that wrote a checkpoint, and the check that this version can read it."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_paf import __version__

KEY = "lightning_paf"
"""Entry of a checkpoint that holds `checkpoint_version()`."""
LAYOUT = 1
"""Layout of the package's own entries; incremented with every change that older code would misread."""


def checkpoint_version() -> dict[str, Any]:
    """Return the version of checkpoints that this package writes."""
    return {"version": __version__, "layout": LAYOUT}


def check_checkpoint_version(checkpoint: Mapping[str, Any], name: str | Path) -> None:
    """Refuse a checkpoint that needs a newer version; warn if it is of another one.

    Imported weights and old checkpoints have no version and pass.

    Raises:
        ValueError: The checkpoint of the file `name` needs a newer version.
    """
    if KEY not in checkpoint:
        return
    theirs = str(checkpoint[KEY]["version"])
    if _major(theirs) > _major(__version__) or checkpoint[KEY]["layout"] > LAYOUT:
        raise ValueError(
            f"A checkpoint must be of lightning_paf {__version__} or older, got {name} of {theirs}. "
            f"Install lightning_paf {theirs}, or pass another --ckpt_path."
        )
    if theirs != __version__:
        warnings.warn(
            f"{name} was written by lightning_paf {theirs}, and this is {__version__}. See the changelog for "
            "changes that make a resumed training differ from an uninterrupted one.",
            stacklevel=2,
        )


def _major(version: str) -> int:
    first = version.partition(".")[0]
    return int(first) if first.isdigit() else 0
