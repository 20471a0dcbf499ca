"""Settings of the command line for the task that options name."""

import contextlib
import importlib
from collections.abc import Sequence
from typing import Any

from lightning_paf.cli.class_names import named_task, subclasses
from lightning_paf.tasks import RobustModule, Task


def task_settings(words: Sequence[str]) -> dict[str, Any]:
    """Return arguments of `PafCLI` for the named task and its data, if any.

    Where no class has the name, they are those of `RobustModule`, and the parser reports the error.
    """
    name = named_task(words)
    if name is None:
        return {}
    module, _, short = name.rpartition(".")
    with contextlib.suppress(ImportError):
        importlib.import_module(module or __name__)
    task: type[Task] = next((cls for cls in subclasses(Task) if cls.__name__ == short), RobustModule)
    return {"model_class": Task, "subclass_mode_model": True, "datamodule_class": task.data, "task": task}
