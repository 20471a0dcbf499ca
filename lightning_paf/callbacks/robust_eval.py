"""Robust accuracy in validation and test."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_paf.attacks import Attack
from lightning_paf.callbacks.verdict_files import VerdictFiles
from lightning_paf.evaluation.evaluate import judge
from lightning_paf.evaluation.identity import Header
from lightning_paf.evaluation.judgement import Judgement
from lightning_paf.evaluation.result import EvaluationResult
from lightning_paf.evaluation.samples import Samples
from lightning_paf.evaluation.state import Ledger, MemoryLedger
from lightning_paf.evaluation.stopping import StopRule
from lightning_paf.speed.search_model import Precision
from lightning_paf.types import Batch
from lightning_paf.utils.distributed import barrier_without_timeout

Stage = Literal["val", "test"]
_NAME = r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}"


class _Settings(TypedDict):
    seed: int
    block_size: int
    precision: Precision


class RobustEval(Callback):
    """Attacks the model in validation every few epochs, and in test.

    Logs `val/acc_{name}` and `test/acc_{name}` (a checkpoint may monitor them). Each sample counts once, also where a
    padded sampler shows it twice. Verdicts are in fp32 whatever the precision of the training, never in the sanity
    check, and leave the random generators as found, so that a check does not change the training.

    In test, the verdict of every block of samples under every attack is a record of a ledger on disk. Killed at any
    moment, the same command continues; ranks, and further processes with the same command, share the blocks, and the
    ledger is the same for any number of them. At the end the test folder holds a result (JSON), a receipt (the
    adversarial examples and all hashes, for `lightning-paf verify`) and a report (HTML). Where those of another
    evaluation (other weights, samples, settings) have the same names, their names end in the identity.

    In validation every rank judges its own samples, in memory, on the last batch: only between the epoch hooks are
    averaged weights in place.

    Args:
        attack: The attack that judges; not the one that trains.
        name: Suffix of the metric and of the files.
        every_n_epochs: Validation epochs between two checks; 0 judges only in test.
        max_examples: Judge only the first so many samples of the validation set (a fixed subset); null judges all.
        test_examples: Judge only the first so many samples of the test set; null judges all.
        batch_size: Samples in a block: judged together, recorded together.
        seed: Run seed of the attack; every block derives its own from it.
        search_precision: `bf16` searches faster on hardware that has it, and confirms every success in fp32.
        stop: Ends a test early, when its rule is met; samples are then judged in random order. Null judges all.
        ledger: Folder of the test's ledger; null puts it into the test folder, one for each set of weights, data and
            settings. Several machines can share it.
        receipt: Whether to write the receipt and the report.

    Raises:
        ValueError: A number that makes no sense, a name that is no file name; a ledger of something else.
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
        search_precision: Precision = "fp32",
        stop: StopRule | None = None,
        ledger: Path | None = None,
        receipt: bool = True,
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
        _check_name(name)
        self.attack = attack
        self.name = name
        self.every_n_epochs = every_n_epochs
        self.examples: dict[Stage, int | None] = {"val": max_examples, "test": test_examples}
        self.batch_size = batch_size
        self.seed = seed
        self.search_precision = search_precision
        self.stop = stop
        self.ledger = ledger
        self.receipt = receipt
        self.results: dict[Stage, EvaluationResult] = {}
        self._ids: list[int] = []
        self._seen = 0
        self._verdicts = torch.empty(0, dtype=torch.int32)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse two evaluations of one name: a metric would be the mean of both, and files would be replaced."""
        named = [c for c in trainer.callbacks if isinstance(c, RobustEval) and c.name == self.name]  # type: ignore[attr-defined]
        if len(named) > 1:
            raise ValueError(
                f"Evaluations must have different names, got {len(named)} with name={self.name}. "
                f"Pass --SLOT.name {self.name}2 for one of them."
            )

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
        """On the last batch, attack what this rank has seen."""
        self._seen += len(batch[1])
        if self._due(trainer) and batch_idx + 1 == trainer.num_val_batches[0]:
            ids = np.array([i for i in dict.fromkeys(self._ids[: self._seen]) if i < len(self._verdicts)], np.int64)
            # Where inference mode is on, the tensors made inside it know no gradients.
            with barrier_without_timeout(), torch.inference_mode(False):
                self._check(trainer, _classifier(pl_module), _samples(trainer, trainer.val_dataloaders, ids))

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Remember what has passed."""
        self._seen += len(batch[1])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the ranks' verdicts together and log the accuracy."""
        if self._due(trainer):
            verdicts = trainer.strategy.reduce(self._verdicts.to(pl_module.device), reduce_op="max")
            self._log("val", pl_module, EvaluationResult(self.name, self.attack.describe(), _codes(verdicts), 0.0))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge everything that has passed, on any rank, through the ledger; log the accuracy, write the files."""
        passed = torch.zeros(len(self._verdicts), dtype=torch.int32)
        passed[[i for i in self._ids[: self._seen] if i < len(passed)]] = 1
        passed = trainer.strategy.reduce(passed.to(pl_module.device), reduce_op="max")
        ids = passed.nonzero().flatten().cpu().numpy()
        if self.stop is not None:
            ids = np.random.default_rng(self.seed).permutation(ids)
        files = VerdictFiles.of(trainer, pl_module, self.name, self.attack)
        model = _classifier(pl_module)
        with barrier_without_timeout(), torch.inference_mode(False):
            samples = _samples(trainer, trainer.test_dataloaders, ids)
            header = self._header(model, samples)
            identity = header.identity(stop=None if self.stop is None else self.stop.reason)
            files = files.of_evaluation(identity)
            judgement = self._judge(model, samples, header, files.ledger(header, self.ledger), self.stop, _say(trainer))
            files = files.of_evaluation(identity)  # another test may have ended meanwhile
            result = EvaluationResult.from_judgement(self.name, judgement, files.weights, identity)
            self._log("test", pl_module, result)
            if trainer.is_global_zero:
                result.save(files.result)
                if self.receipt:
                    files.write_evidence(result, judgement, model, samples)
                rank_zero_info(_summary(self.name, result, files))

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
        with torch.inference_mode(False):  # a tensor made under it could not be written to outside
            self._verdicts = torch.zeros(min(size, self.examples[stage] or size), dtype=torch.int32)
        self._seen = 0

    def _check(self, trainer: Trainer, model: nn.Module, samples: Samples) -> None:
        """Judge in memory; subclasses may do it in another way."""
        if len(samples) == 0:
            return  # a rank whose samples all lie beyond `max_examples`
        judgement = self._judge(model, samples, self._header(model, samples), MemoryLedger())
        self._verdicts[torch.from_numpy(judgement.ids)] = torch.from_numpy(judgement.verdicts).int()

    def _header(self, model: nn.Module, samples: Samples) -> Header:
        """The header of an evaluation; reads every sample once."""
        return Header.of(model, self.attack, samples, **self._settings)

    def _judge(
        self,
        model: nn.Module,
        samples: Samples,
        header: Header,
        ledger: Ledger | MemoryLedger,
        stop: StopRule | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> Judgement:
        return judge(model, self.attack, samples, ledger, **self._settings, stop=stop, progress=progress, header=header)

    @property
    def _settings(self) -> _Settings:
        return {"seed": self.seed, "block_size": self.batch_size, "precision": self.search_precision}

    def _log(self, stage: Stage, pl_module: LightningModule, result: EvaluationResult) -> None:
        self.results[stage] = result
        # All ranks log the same; Lightning warns of epoch metrics that are not reduced all the same.
        pl_module.log(f"{stage}/acc_{self.name}", result.robust.value, prog_bar=True, sync_dist=True)


def _check_name(name: str) -> None:
    if not re.fullmatch(_NAME, name):
        raise ValueError(
            "name must be 1 to 64 letters, digits, `_`, `-` and `.`, and not begin with `.`, because files and metrics "
            f"bear it, got {name!r}. Pass --SLOT.name autoattack."
        )


def _classifier(pl_module: LightningModule) -> nn.Module:
    """What is judged: the module's `model`, unwrapped."""
    model = pl_module.model
    assert isinstance(model, nn.Module)
    return model


def _samples(trainer: Trainer, loader: Any, ids: NDArray[np.int64]) -> Samples:
    """Samples of a loader's dataset, prepared and moved as the loader's batches are."""

    def fetch(ids: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        dataset, numbers = loader.dataset, ids.tolist()
        at_once = getattr(dataset, "__getitems__", None)
        rows = at_once(numbers) if at_once else [dataset[i] for i in numbers]
        x, y = trainer.strategy.batch_to_device(loader.collate_fn(rows))
        return x.float(), y

    return Samples(ids, fetch)


def _codes(verdicts: Tensor) -> NDArray[np.uint8]:
    return verdicts.cpu().numpy().astype(np.uint8)


def _say(trainer: Trainer) -> Callable[[str], None] | None:
    """Where the lines about progress go: one process of several speaks."""
    return rank_zero_info if trainer.is_global_zero else None


def _summary(name: str, result: EvaluationResult, files: VerdictFiles) -> str:
    attack = result.attack
    stopped = f" (of {result.total}; on all of them {result.anytime}, whenever stopped)" if result.anytime else ""
    return (
        f"{name}: robust {result.robust}, clean {result.clean} on {result.judged} samples{stopped}; "
        f"{attack['attack']} {attack['norm']} eps {attack['eps']}; {files.weights}. {files.summary()}"
    )
