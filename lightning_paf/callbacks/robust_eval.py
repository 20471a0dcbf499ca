"""Robust accuracy in validation and test."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_paf.attacks import Attack
from lightning_paf.evaluation import EvaluationResult, Verdict
from lightning_paf.nn.modes import frozen
from lightning_paf.types import Batch

Stage = Literal["val", "test"]


class RobustEval(Callback):
    """Attacks the model in validation every few epochs, and in test.

    Logs `val/acc_{name}` and `test/acc_{name}` (a checkpoint may monitor them), and writes the test's verdict of every
    sample with the threat model and the 95 % interval to a JSON file in the run folder. It works while batches pass
    (`on_validation_batch_end`, `on_test_batch_end`), because averaged weights are in place only between the epoch
    hooks; outside autocast, so in fp32; never in the sanity check. Every rank attacks its own samples without talking
    to the others, and the verdicts are put together once, at the end of the epoch: each sample counts once, also where
    a padded sampler shows it twice. The random generators are left as found, so that a check does not change the
    training.

    Args:
        attack: The attack that judges; not the one that trains.
        name: Suffix of the metric and of the result file.
        every_n_epochs: Validation epochs between two checks; 0 judges only in test.
        max_examples: Judge only the first so many samples of the validation set (a fixed subset); null judges all.
        test_examples: Judge only the first so many samples of the test set; null judges all.
        batch_size: Samples attacked at once.
        seed: Seed of the attack; the same samples meet the same random starts at every check.

    Raises:
        ValueError: A number that makes no sense.
    """

    def __init__(
        self,
        attack: Attack,
        name: str = "pgd",
        every_n_epochs: int = 1,
        max_examples: int | None = None,
        test_examples: int | None = None,
        batch_size: int = 256,
        seed: int = 0,
    ) -> None:
        for option, value, least in (
            ("every_n_epochs", every_n_epochs, 0),
            ("max_examples", max_examples, 1),
            ("test_examples", test_examples, 1),
            ("batch_size", batch_size, 1),
        ):
            if value is not None and value < least:
                raise ValueError(
                    f"{option} must be at least {least}, but {option}={value}. Pass --SLOT.{option} {least}."
                )
        self.attack = attack
        self.name = name
        self.every_n_epochs = every_n_epochs
        self.examples: dict[Stage, int | None] = {"val": max_examples, "test": test_examples}
        self.batch_size = batch_size
        self.seed = seed
        self.results: dict[Stage, EvaluationResult] = {}
        self._ids: list[int] = []
        self._verdicts = torch.empty(0, dtype=torch.int32)
        self._seen = 0
        self._seconds = 0.0

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last check."""
        self._start("val", trainer)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last check."""
        self._start("test", trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Attack this batch."""
        if self._due(trainer):
            self._judge(_classifier(pl_module), batch)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Attack this batch."""
        self._judge(_classifier(pl_module), batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the ranks' verdicts together and log the accuracy."""
        if self._due(trainer):
            self._finish("val", trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the ranks' verdicts together, log the accuracy, write the result."""
        result = self._finish("test", trainer, pl_module)
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # all ranks: the property broadcasts
        path = folder / f"{self.name}_{_label(result)}.json"
        if trainer.is_global_zero:
            result.save(path)
            rank_zero_info(
                f"{self.name}: robust {result.robust}, clean {result.clean} on {result.judged} samples; "
                f"{result.attack['attack']} {result.attack['norm']} eps {result.attack['eps']}. Verdicts: {path}"
            )

    def _due(self, trainer: Trainer) -> bool:
        if trainer.sanity_checking or self.every_n_epochs == 0:
            return False
        fitting = trainer.state.fn == TrainerFn.FITTING
        return not fitting or (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def _start(self, stage: Stage, trainer: Trainer) -> None:
        loaders = trainer.val_dataloaders if stage == "val" else trainer.test_dataloaders
        if not isinstance(loaders, DataLoader):
            raise ValueError(
                f"RobustEval needs one DataLoader, but the {stage} loader is {type(loaders).__name__}. "
                f"Return a single DataLoader from {stage}_dataloader."
            )
        self._ids = [int(i) for i in loaders.sampler]
        size = len(loaders.dataset)  # type: ignore[arg-type]  # a dataset behind a sampler has a length
        self._verdicts = torch.zeros(min(size, self.examples[stage] or size), dtype=torch.int32)
        self._seconds = 0.0
        self._seen = 0

    def _judge(self, model: nn.Module, batch: Batch) -> None:
        x, y = batch
        ids = torch.tensor(self._ids[self._seen : self._seen + len(y)])
        self._seen += len(y)
        started = time.perf_counter()
        places = [place for place, i in enumerate(ids.tolist()) if i < len(self._verdicts)]
        for first in range(0, len(places), self.batch_size):
            part = torch.tensor(places[first : first + self.batch_size])
            with _own_random_numbers(self.seed + int(ids[part[0]]), x.device):
                self._verdicts[ids[part]] = self._attacked(model, x[part], y[part])
        self._seconds += time.perf_counter() - started

    def _attacked(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Verdicts (N,) int32; clean errors are not attacked."""
        with torch.no_grad(), frozen(model):
            verdicts = torch.where(model(x).argmax(1) == y, Verdict.ROBUST, Verdict.CLEAN_ERROR).int()
            correct = torch.nonzero(verdicts == Verdict.ROBUST).flatten()
            if len(correct):
                x_adv = self.attack(model, x[correct], y[correct])
                fooled = model(x_adv).argmax(1) != y[correct]
                verdicts[correct[fooled]] = Verdict.BROKEN
        return verdicts.cpu()

    def _finish(self, stage: Stage, trainer: Trainer, pl_module: LightningModule) -> EvaluationResult:
        verdicts = trainer.strategy.reduce(self._verdicts.to(pl_module.device), reduce_op="max")
        seconds = trainer.strategy.reduce(torch.tensor(self._seconds, device=pl_module.device), reduce_op="sum")
        result = EvaluationResult(
            self.name, self.attack.describe(), verdicts.cpu().numpy().astype("uint8"), float(seconds)
        )
        self.results[stage] = result
        # All ranks log the same; Lightning warns of epoch metrics that are not reduced all the same.
        pl_module.log(f"{stage}/acc_{self.name}", result.robust.value, prog_bar=True, sync_dist=True)
        return result


def _classifier(pl_module: LightningModule) -> nn.Module:
    """What is judged: the module's `model`, unwrapped."""
    model = pl_module.model
    assert isinstance(model, nn.Module)
    return model


@contextmanager
def _own_random_numbers(seed: int, device: torch.device) -> Iterator[None]:
    """A fixed seed inside, the generators as they were outside."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def _label(result: EvaluationResult) -> str:
    """Threat model as part of a file name: `linf_8-255`."""
    return f"{result.attack['norm']}_{str(result.attack['eps']).replace('/', '-')}"
