"""Whether a training that goes on in a run folder is the one that was begun there."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

_FIXED = [
    "seed_everything",
    "model",
    "data",
    "averaging",
    "val_attack",
    "autoattack",
    "checkpoint.monitor",
    "checkpoint.mode",
    "trainer.precision",
    "trainer.sync_batchnorm",
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.limit_train_batches",
    "trainer.overfit_batches",
    "trainer.accumulate_grad_batches",
    "trainer.gradient_clip_val",
    "trainer.gradient_clip_algorithm",
]
"""What learns, from what, for how long, and what chooses the best checkpoint. All else, such as devices, may change."""

_FREE = [
    "model.speed",
    "data.root",
    "data.cache_dir",
    "data.num_workers",
    "data.eval_batch_size",
    *(
        f"{slot}.{name}"
        for slot in ("val_attack", "autoattack")
        for name in ("test_examples", "stop", "state_dir", "ledger")
    ),
    *(f"{slot}.{name}" for slot in ("val_attack", "autoattack") for name in ("receipt", "evidence")),
]
"""Among these: where things lie, how fast they are computed, and what only matters in tests."""

_LENGTHS = ["trainer.max_epochs", "trainer.max_steps"]
_PRECISIONS = {"None": "32-true", "32": "32-true", "64": "64-true", "16": "16-mixed", "bf16": "bf16-mixed"}
_FILE = "config.yaml"


def check_same_training(folder: Path, now: Mapping[str, Any]) -> bool:
    """Refuse to go on with a training under options with which it would be another one.

    Args:
        folder: The run folder, with the configuration that the training was begun with; without one, all is well.
        now: The merged configuration of the training that is to go on.

    Returns:
        Whether it is to be longer than it was begun.

    Raises:
        ValueError: Options differ that may not; all are named.
    """
    changes = [change for change in _changes(_begun(folder), now) if _matters(change[0])]
    longer = [change for change in changes if change[0] in _LENGTHS and _length(change[2]) > _length(change[1])]
    refused = [change for change in changes if change not in longer]
    if refused:
        listed = "\n".join(f"  --{option} {_text(old)} -> {_text(new)}" for option, old, new in refused)
        raise ValueError(
            f"A run folder holds one training, but {folder} was begun with other options:\n{listed}\n"
            "Give those of before (other devices, more epochs, other paths are fine); or begin another run, from a "
            "checkpoint of this one if you like: --run OTHER --ckpt_path FILE."
        )
    return bool(longer)


def _begun(folder: Path) -> Mapping[str, Any]:
    """The configuration in a run folder; empty where there is none that can be read."""
    try:
        content = yaml.safe_load((folder / _FILE).read_text())
    except (OSError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _changes(old: Any, new: Any, option: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Options that differ, as they are typed, with both values.

    What one of both does not have is an option that came or went with a version of the package.
    """
    if isinstance(old, dict) and isinstance(new, dict) and old.get("class_path") == new.get("class_path"):
        for name in old.keys() & new.keys():
            inside = option if name == "init_args" else f"{option}.{name}".lstrip(".")
            yield from _changes(old[name], new[name], inside)
    elif _comparable(option, old) != _comparable(option, new):
        yield option, old, new


def _comparable(option: str, value: Any) -> Any:
    if option == "data.synthetic" and value:  # the same files elsewhere are the same
        return [Path(path).name for path in (value if isinstance(value, list) else [value])]
    if option == "trainer.precision":
        return _PRECISIONS.get(str(value), str(value))
    return value


def _matters(option: str) -> bool:
    return _lies_in(option, _FIXED) and not _lies_in(option, _FREE)


def _lies_in(option: str, places: list[str]) -> bool:
    return any(option == place or option.startswith(f"{place}.") for place in places)


def _length(value: int | None) -> float:
    """Epochs or steps; none, and -1, is no limit."""
    return math.inf if value is None or value < 0 else value


def _text(value: Any) -> str:
    """As one types it: a class by its name."""
    if isinstance(value, dict) and "class_path" in value:
        return str(value["class_path"]).rpartition(".")[2]
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("\n").removesuffix("\n...")
