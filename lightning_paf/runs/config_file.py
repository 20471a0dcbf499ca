"""The saved configuration of a run, and the run folder of a checkpoint."""

from pathlib import Path
from typing import Any

from lightning_paf.runs.resume_check import CONFIG

_HEADER = "# lightning"
"""Start of every configuration that `fit` or `import-weights` saved."""
_NOT_SAVED = "Unable to serialize instance "
"""Start of the text that jsonargparse saves for an object that YAML cannot hold."""


def run_of(checkpoint: Path) -> Path:
    """Return a checkpoint's run folder: the nearest parent with a configuration."""
    default = checkpoint.parent.parent
    if (default / CONFIG).is_file():
        return default
    parents = [checkpoint.parent, *default.absolute().parents]
    return next((folder for folder in parents if is_saved(folder / CONFIG)), default)


def is_saved(config: Path) -> bool:
    """Return whether `fit` or `import-weights` wrote a file."""
    if config.name != CONFIG or not config.is_file():
        return False
    with config.open(errors="replace") as stream:
        return stream.readline().startswith(_HEADER)


def check_saved(value: Any, key: str = "") -> None:
    """Check that a dumped configuration has a value for every object."""
    if isinstance(value, str) and value.startswith(_NOT_SAVED):
        raise ValueError(
            f"--{key} must be a value that {CONFIG} can hold, got {value.removeprefix(_NOT_SAVED)}. Leave it out, or "
            "set it in a subclass."
        )
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        check_saved(item, f"{key}.{name}" if key else str(name))
