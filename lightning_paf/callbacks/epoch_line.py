"""What a training says where nobody watches a progress bar."""

import re
from collections.abc import Mapping

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_paf.callbacks.throughput import Throughput
from lightning_paf.runs.progress import duration


class EpochLine(Callback):
    """Prints one line an epoch, for log files.

    As in `epoch 3/15  step 1200  loss 1.234  train 41.0 %  clean 81.2 %  robust(pgd20) 45.1 %  alpha 1.23  beta 0.00
    12,345 img/s  eta 1 h 02 min`. `train` is the accuracy on what the network was trained on, so under attack;
    what follows until `beta` is of the epoch's validation and left out where there was none. Only the first process
    prints. The line of an epoch comes when all that belongs to it is done, checkpoints included.

    Args:
        throughput: Knows how fast the training is.
    """

    def __init__(self, throughput: Throughput) -> None:
        self.throughput = throughput
        self._validated = False
        self._finished: int | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Its numbers are new."""
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The module logs its own numbers after this."""
        self._finished = trainer.current_epoch + 1

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line of the epoch before."""
        self._print(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the last one."""
        self._print(trainer)

    def _print(self, trainer: Trainer) -> None:
        if self._finished is not None and trainer.is_global_zero:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            if not self._validated:  # what is there is old
                metrics = {name: value for name, value in metrics.items() if name.startswith("train/")}
            last = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
            begin = f"epoch {self._finished}{last}  step {trainer.global_step}"
            parts = [begin, *_results(metrics), *self._pace(trainer.global_step)]
            print("  ".join(parts), flush=True)  # noqa: T201
        self._validated, self._finished = False, None

    def _pace(self, step: int) -> list[str]:
        parts = [f"{speed:,.0f} img/s" for name, speed in self.throughput.latest.items() if name.endswith("per_second")]
        left = self.throughput.seconds_left(step)
        return [*parts, f"eta {duration(left)}"] if left else parts


def _results(metrics: Mapping[str, float]) -> list[str]:
    """Whatever of loss, accuracies and activations was logged."""
    shares = {"train/acc_adv": "train", "val/acc": "clean"}
    shares |= {name: f"robust({name.removeprefix('val/acc_')})" for name in metrics if name.startswith("val/acc_")}
    loss = [f"loss {metrics['train/loss']:.3f}"] if "train/loss" in metrics else []
    accuracies = [f"{label} {100 * metrics[name]:.1f} %" for name, label in shares.items() if name in metrics]
    activations = [
        f"{parameter} {_span(values)}"
        for parameter in ("alpha", "beta")
        if (values := [metrics[name] for name in metrics if re.fullmatch(rf"activation/(.*/)?{parameter}", name)])
    ]
    return [*loss, *accuracies, *activations]


def _span(values: list[float]) -> str:
    """One number, or the smallest and the largest of several."""
    ends = dict.fromkeys(f"{value:.3g}" for value in (min(values), max(values)))
    return "..".join(ends)
