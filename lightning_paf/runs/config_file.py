"""The saved configuration of a run, and the run folder of a checkpoint."""

from pathlib import Path

from lightning_paf.runs.resume_check import CONFIG

_HEADER = "# lightning"
"""Start of every configuration that `fit` or `import-weights` saved."""


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
