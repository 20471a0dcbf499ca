"""Check of the package version that wrote a checkpoint."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_paf import __version__

KEY = "lightning_paf"
"""Entry of a checkpoint that holds `checkpoint_version()`."""
LAYOUT = 1
"""Layout of the package's own entries; incremented with every incompatible change."""


def checkpoint_version() -> dict[str, Any]:
    """Return the version of checkpoints that this package writes."""
    return {"version": __version__, "layout": LAYOUT}


def check_checkpoint_version(checkpoint: Mapping[str, Any], name: str | Path) -> None:
    """Check that this version can read a checkpoint; warn if another one wrote it.

    Imported weights and old checkpoints have no version and pass.

    Raises:
        ValueError: The checkpoint of the file `name` needs a newer version.
    """
    if KEY not in checkpoint:
        return
    written = str(checkpoint[KEY]["version"])
    if _major(written) > _major(__version__) or checkpoint[KEY]["layout"] > LAYOUT:
        raise ValueError(
            f"A checkpoint must be of lightning_paf {__version__} or older, got {name} of {written}. "
            f"Install lightning_paf {written}, or pass another --ckpt_path."
        )
    if written != __version__:
        warnings.warn(
            f"{name} was written by lightning_paf {written}, and this is {__version__}. See the changelog for "
            "changes that make a resumed training differ from an uninterrupted one.",
            stacklevel=2,
        )


def _major(version: str) -> int:
    first = version.partition(".")[0]
    return int(first) if first.isdigit() else 0
