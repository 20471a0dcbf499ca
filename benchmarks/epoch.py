"""Fraction of an epoch outside attack and update.

    python benchmarks/epoch.py
    python benchmarks/epoch.py --device cuda --compile

A `Trainer.fit` of `RobustModule` on `RobustDataModule`: noise images, 30 % of them from `train.npz` in memory and 70 %
from a memory-mapped pool, crop and flip, weight averaging, CSV logger, no validation. Attack and update are the
training objective (with the attack, the pass for BatchNorm and the forward pass of the update), the backward pass, and
the optimiser with clipping. The rest is waiting for the loader, the transfer to the device, augmentation, the check for
a finite loss, metrics, logging, callbacks, the schedule, the trainer's loops, and the pause between epochs. On CUDA,
times are those of events in the stream: work of the host while the device is busy does not count.
"""

import argparse
import logging
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import measure
import numpy as np
import ours
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from lightning_paf.attacks import Attack
from lightning_paf.callbacks import WarmupEMA
from lightning_paf.data import RobustDataModule
from lightning_paf.data.augment import CropFlip

WARMUP = 1
"""Epochs that are dropped: kernels are compiled, workers start."""

Mark = float | torch.cuda.Event


class Clock:
    """Events in the stream of the device and the seconds between them."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"

    def mark(self) -> Mark:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Mark, end: Mark) -> float:
        """Seconds between two completed marks."""
        return start.elapsed_time(end) / 1000 if isinstance(start, torch.cuda.Event) else end - start


class TimedAttack:
    """An attack that marks its start and end."""

    def __init__(self, attack: Attack, watch: "Stopwatch") -> None:
        self.attack, self.watch = attack, watch

    def __call__(self, *args: Any, **options: Any) -> Tensor:
        self.watch.begin("attack")
        x_adv = self.attack(*args, **options)
        self.watch.end("attack")
        return x_adv


class Stopwatch(Callback):
    """Seconds of every epoch and of its parts; the last of the callbacks, so that the others do not count."""

    def __init__(self, device: torch.device) -> None:
        self.clock = Clock(device)
        self.marks: list[tuple[str, Mark, Mark]] = []
        self.open: dict[str, Mark] = {}
        self.epochs: list[dict[str, float]] = []

    def begin(self, part: str) -> None:
        self.open[part] = self.clock.mark()

    def end(self, part: str) -> None:
        self.marks.append((part, self.open.pop(part), self.clock.mark()))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.attack = TimedAttack(pl_module.attack, self)
        objective: nn.Module = pl_module.objective
        objective.register_forward_pre_hook(lambda *_: self.begin("objective"))
        objective.register_forward_hook(lambda *_: self.end("objective"))
        trainer.optimizers[0].register_step_post_hook(lambda *_: self.end("optimiser"))
        self.begin("epoch")

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self.begin("backward")

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.end("backward")

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self.begin("optimiser")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.end("epoch")
        self.begin("epoch")
        if self.clock.cuda:
            torch.cuda.synchronize()  # counts as outside: it delays the first batch of the next epoch
        sums: dict[str, float] = {}
        for part, start, end in self.marks:
            sums[part] = sums.get(part, 0.0) + self.clock.seconds(start, end)
        self.epochs.append(sums)
        self.marks.clear()


def fractions(epoch: dict[str, float]) -> dict[str, float]:
    """Parts of an epoch over the epoch."""
    inside = epoch["objective"] + epoch["backward"] + epoch["optimiser"]
    parts = {"outside of attack and update": epoch["epoch"] - inside, "attack": epoch["attack"]}
    parts["update, forward"] = epoch["objective"] - epoch["attack"]
    parts |= {"update, backward": epoch["backward"], "update, optimiser": epoch["optimiser"]}
    return {name: part / epoch["epoch"] for name, part in parts.items()}


def write_images(folder: Path, name: str, count: int, rng: np.random.Generator) -> Path:
    """Write an archive of noise with all classes."""
    images = rng.integers(256, size=(count, 32, 32, 3), dtype=np.uint8)
    np.savez(folder / name, image=images, label=np.arange(count) % 10)
    return folder / name


def data_module(options: argparse.Namespace, folder: Path, **more: Any) -> RobustDataModule:
    """Real images for one epoch and a pool for four; `more` are options of `RobustDataModule`."""
    rng = np.random.default_rng(0)
    total = options.batch * options.batches
    write_images(folder, "train.npz", max(80, total), rng)
    write_images(folder, "test.npz", 40, rng)
    settings: dict[str, Any] = {
        "synthetic": write_images(folder, "pool.npz", 4 * total, rng),
        "real_fraction": 0.3,
        "batch_size": options.batch,
        "epoch": total,
        "val_size": 10,
        "num_workers": options.workers,
        "augment": CropFlip(),
    }
    return RobustDataModule("npz", folder, 10, **settings | more)


def trainer(options: argparse.Namespace, **more: Any) -> Trainer:
    """The trainer of configs/trainer for one device, without files and progress bar; `more` are its options."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (".*does not have many workers", ".*smaller than the logging interval", ".*LeafSpec.*deprecated"):
        warnings.filterwarnings("ignore", message=message)
    return Trainer(
        accelerator="gpu" if options.device == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed" if options.precision == "bf16" else "32-true",
        benchmark=options.device == "cuda",
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **more,
    )


def fit(options: argparse.Namespace, device: torch.device) -> list[dict[str, float]]:
    """Train for `--repeats` epochs, and return the seconds of their parts."""
    watch = Stopwatch(device)
    with TemporaryDirectory() as folder:
        around = {"callbacks": [WarmupEMA(), watch], "logger": CSVLogger(folder), "limit_val_batches": 0}
        fitting = trainer(options, max_epochs=WARMUP + options.repeats, **around)
        fitting.fit(ours.module(options), data_module(options, Path(folder)))
    return watch.epochs[WARMUP:]


def main() -> None:
    parser = measure.parser(__doc__, repeats=3)
    ours.add_sizes(parser)
    parser.add_argument("--batches", type=int, help="in an epoch; 98 on CUDA (50,000 images), 6 on CPU")
    parser.add_argument("--workers", type=int, help="processes that fetch batches; 4 on CUDA, 0 on CPU")
    options = parser.parse_args()
    device = ours.sizes(options)
    cuda = options.device == "cuda"
    options.batches = options.batches or (4 if options.quick else 98 if cuda else 6)
    options.workers = (4 if cuda else 0) if options.workers is None else options.workers
    torch.manual_seed(0)
    epochs = fit(options, device)
    columns = [fractions(epoch) for epoch in epochs]
    rows: dict[str, dict[str, Any]] = {name: measure.spread([c[name] for c in columns]) for name in columns[0]}
    rows["outside of attack and update"]["target"] = "<= 0.02"
    if cuda:
        rows["seconds of an epoch"] = measure.spread([epoch["epoch"] for epoch in epochs])
    print(f"Epoch of {options.batches} steps: {options.net}, width {options.width}, batch {options.batch}\n")
    measure.report(options, rows)


if __name__ == "__main__":
    main()
