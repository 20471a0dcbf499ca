"""Identity of a run in its folder, its checkpoints and the services it logs to."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from lightning_paf.utils.files import parse_json, write_whole

FILE = "run.json"
RUN = "run"
"""Entry of the file and of checkpoints that holds the ID of the run."""
_ID_OPTIONS = ("run_id", "id")
"""Options with which MLflow and W&B resume one of their runs."""


def read_identity(folder: Path) -> dict[str, str]:
    """Return the ID of a run, and by the class of a logger that of its service.

    The result is empty for runs of earlier versions and without a valid file.
    """
    try:
        content = parse_json((folder / FILE).read_text())
        return {str(name): value for name, value in content.items() if isinstance(value, str)}
    except (OSError, ValueError, AttributeError):
        return {}


def write_identity(folder: Path, run: str, loggers: Iterable[Logger]) -> None:
    """Write the ID of a run and those of its services, on the first rank."""
    ids = {type(logger).__name__: logger.version for logger in loggers if is_service(logger) and logger.version}
    content = {**read_identity(folder), **{name: str(value) for name, value in ids.items()}, RUN: run}
    write_whole(folder / FILE, (json.dumps(content, indent=2) + "\n").encode())


def is_service(logger: Logger) -> bool:
    """Return whether a logger writes elsewhere than to the run folder."""
    return not isinstance(logger, CSVLogger | TensorBoardLogger)


def resume_services(configured: Any, run: Path) -> Callable[[], None]:
    """Set the IDs of a run's services in the configuration of its loggers.

    Fit, resume and test then log to one run of MLflow or W&B. Local files of W&B are written to the run folder.

    Args:
        configured: Value of `--trainer.logger`: one or several objects with `class_path` and `init_args`, or None.
        run: Run folder.

    Returns:
        Function that restores the configuration, which can be used for another run.
    """
    known, changed = read_identity(run), list[tuple[Any, str, Any]]()
    for logger in configured if isinstance(configured, list) else [configured]:
        name, options = (
            str(getattr(logger, "class_path", "")).rpartition(".")[2],
            getattr(logger, "init_args", None) or {},
        )
        found = {"save_dir": (".", str(run)), **{option: (None, known.get(name)) for option in _ID_OPTIONS}}
        for option, (default, value) in found.items():
            if option in options and options[option] == default:
                changed.append((options, option, default))
                options[option] = value

    def restore() -> None:
        for options, option, value in changed:
            options[option] = value

    return restore
