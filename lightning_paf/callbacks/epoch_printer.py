"""One printed line per epoch, instead of a progress bar."""

import re
from collections.abc import Mapping

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_paf.callbacks.throughput import Throughput
from lightning_paf.runs.progress import duration


class EpochPrinter(Callback):
    """Printer of one line per epoch, for log files.

    Example: `epoch 3/15  step 1200  loss 1.234  train 41.0 %  clean 81.2 %  robust(pgd20) 45.1 %  alpha 1.23  beta 0.00
    12,345 img/s  eta 1 h 02 min`. `train` is the accuracy on the training examples under attack. The values from
    `clean` to `beta` are those of the epoch's validation, if there was one, as are `val loss`, `psnr` and
    `psnr(obsatk)` of tasks that log them. The first process prints, after the epoch's checkpoints are written.

    Args:
        throughput: Source of the speed.
    """

    def __init__(self, throughput: Throughput) -> None:
        self.throughput = throughput
        self._validated = False
        self._finished: int | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record that the metrics of a validation are new."""
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the epoch; the module logs its metrics later."""
        self._finished = trainer.current_epoch + 1

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line of the previous epoch."""
        self._print(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the last line."""
        self._print(trainer)

    def _print(self, trainer: Trainer) -> None:
        if self._finished is not None and trainer.is_global_zero:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            if not self._validated:  # from an earlier epoch
                metrics = {name: value for name, value in metrics.items() if name.startswith("train/")}
            last = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
            begin = f"epoch {self._finished}{last}  step {trainer.global_step}"
            parts = [begin, *_results(metrics), *self._speed(trainer.global_step)]
            print("  ".join(parts), flush=True)  # noqa: T201
        self._validated, self._finished = False, None

    def _speed(self, step: int) -> list[str]:
        parts = [f"{speed:,.0f} img/s" for name, speed in self.throughput.latest.items() if name.endswith("per_second")]
        left = self.throughput.seconds_left(step)
        return [*parts, f"eta {duration(left)}"] if left else parts


def _results(metrics: Mapping[str, float]) -> list[str]:
    """Format the logged loss, accuracies, PSNR and activation parameters."""
    labels = {"train/acc_adv": "train", "val/acc": "clean"}
    labels |= {name: f"robust({name.removeprefix('val/acc_')})" for name in metrics if name.startswith("val/acc_")}
    losses = {"train/loss": "loss", "val/loss": "val loss"}
    loss = [f"{label} {metrics[name]:.3f}" for name, label in losses.items() if name in metrics]
    qualities = {"val/psnr": "psnr", "val/psnr_adv": "psnr(obsatk)"}
    quality = [f"{label} {metrics[name]:.2f} dB" for name, label in qualities.items() if name in metrics]
    accuracies = [f"{label} {100 * metrics[name]:.1f} %" for name, label in labels.items() if name in metrics]
    activations = [
        f"{parameter} {_span(values)}"
        for parameter in ("alpha", "beta")
        if (values := [metrics[name] for name in metrics if re.fullmatch(rf"activation/(.*/)?{parameter}", name)])
    ]
    return [*loss, *accuracies, *quality, *activations]


def _span(values: list[float]) -> str:
    """Format one number, or the range of several."""
    ends = dict.fromkeys(f"{value:.3g}" for value in (min(values), max(values)))
    return "..".join(ends)
