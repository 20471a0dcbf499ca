"""Comparison of a run's configuration with that of a command that resumes it."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from lightning_paf.utils.files import explained
from lightning_paf.utils.terminal import clause

CONFIG = "config.yaml"
FREE = (
    "run",
    "config",
    "ckpt_path",
    "weights_only",
    "model.speed",
    "model.init",
    "model.init_head",
    "data.root",
    "data.cache_dir",
    "data.num_workers",
    "data.eval_batch_size",
    *(f"{slot}.{name}" for slot in ("checkpoint", "periodic") for name in ("dirpath", "save_top_k", "verbose")),
    *(f"periodic.{name}" for name in ("every_n_train_steps", "train_time_interval", "every_n_epochs")),
    *(f"{slot}.{name}" for slot in ("val_attack", "autoattack") for name in ("test_examples", "stop", "state_dir")),
    *(f"{slot}.{name}" for slot in ("val_attack", "autoattack") for name in ("ledger", "receipt", "evidence")),
    "monitor",
    *(f"trainer.{name}" for name in ("accelerator", "strategy", "devices", "num_nodes", "logger", "plugins")),
    *(f"trainer.{name}" for name in ("fast_dev_run", "log_every_n_steps", "default_root_dir", "profiler")),
    *(f"trainer.{name}" for name in ("enable_checkpointing", "enable_progress_bar", "enable_model_summary")),
)
"""Options, with all below them, that do not change the results of a training."""

_PRECISIONS = {"None": "32-true", "32": "32-true", "64": "64-true", "16": "16-mixed", "bf16": "bf16-mixed"}


def changed_options(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """Compare a configuration with the one in a run folder.

    Args:
        folder: The run folder; without `config.yaml`, the result is empty.
        config: The merged configuration of the command, as plain values.

    Returns:
        One text per option that differs and is not in `FREE`, as in `--data.batch_size 128 -> 64`. Options in only one
        of the two, which were added or removed by a version of the package, are left out.

    Raises:
        ValueError: `config.yaml` cannot be read, or is not a configuration.
    """
    path = folder / CONFIG
    try:
        with explained(path, "the configuration of a run"):
            before = yaml.safe_load(path.read_bytes()) if path.exists() else {}
    except (yaml.YAMLError, UnicodeError) as error:
        before = error
    if not isinstance(before, dict):
        raise ValueError(
            f"{path} must be the configuration of the run, got {clause(before)}. Restore it, or move it away to resume "
            "without comparing the options."
        )
    changes = _changes(before, dict(config))
    return [f"--{option} {_text(old)} -> {_text(new)}" for option, old, new in changes if not _is_free(option)]


def _changes(old: Any, new: Any, option: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield command-line options that differ, with both values."""
    if isinstance(old, dict) and isinstance(new, dict) and old.get("class_path") == new.get("class_path"):
        for name in sorted(old.keys() & new.keys()):
            inside = option if name == "init_args" else f"{option}.{name}".lstrip(".")
            yield from _changes(old[name], new[name], inside)
    elif _comparable(option, old) != _comparable(option, new):
        yield option, old, new


def _comparable(option: str, value: Any) -> Any:
    if option == "data.synthetic" and value:  # the files can be in another folder
        return [Path(path).name for path in (value if isinstance(value, list) else [value])]
    if option == "trainer.precision":
        return _PRECISIONS.get(str(value), str(value))
    return value or None if isinstance(value, list) else value


def _is_free(option: str) -> bool:
    return any(option == free or option.startswith(f"{free}.") for free in FREE)


def _text(value: Any) -> str:
    """Format a value for the command line; a class by its name."""
    if isinstance(value, dict) and "class_path" in value:
        return str(value["class_path"]).rpartition(".")[2]
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("\n").removesuffix("\n...")
