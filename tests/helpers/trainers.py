"""A trainer without files or output, on the CPU."""

from pathlib import Path

from lightning.pytorch import Callback, Trainer


def trainer(folder: Path | None, *callbacks: Callback, **options) -> Trainer:
    """Return a trainer of one epoch that writes only what its callbacks write."""
    silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    defaults = {"accelerator": "cpu", "max_epochs": 1, "inference_mode": False, "default_root_dir": folder}
    return Trainer(callbacks=list(callbacks), **{**silent, **defaults, **options})
