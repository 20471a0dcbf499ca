"""Robust accuracy in validation and test."""

import copy
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_paf.attacks import Attack, radius_text
from lightning_paf.attacks.probe import Flags, probe
from lightning_paf.attacks.target import check_classes
from lightning_paf.callbacks.classifier_of import classifier_of
from lightning_paf.evaluation import Samples
from lightning_paf.evaluation.certificates import MethodName
from lightning_paf.evaluation.evaluate import Evaluation
from lightning_paf.evaluation.files import ResultFiles
from lightning_paf.evaluation.result import EvaluationResult
from lightning_paf.evaluation.stopping import StopRule
from lightning_paf.runs.folder import run_folder_of
from lightning_paf.runs.weights_origin import weights_origin
from lightning_paf.speed.search_model import Precision
from lightning_paf.speed.search_precision import SearchPrecision, resolved
from lightning_paf.types import Batch, images_and_labels
from lightning_paf.utils.distributed import barrier_without_timeout

Stage = Literal["val", "test"]
_NAME = r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}"


class RobustEval(Callback):
    """Evaluation of robust accuracy in test, and every few epochs in validation.

    Logs `val/acc_{name}` and `test/acc_{name}`, which a checkpoint can monitor. Each sample counts once, even if a
    padded sampler repeats it. The evaluation always uses fp32 and restores the random generators, so that it does not
    change the training. The sanity check of a training only checks model, pixels and labels.

    In test, the result of every sub-attack on every block of samples is a record in a state on disk, so that the same
    command resumes an interrupted test. Ranks, and further processes with the same command, share the blocks; the
    result is the same for any number of them. At the end, the test folder holds a result (JSON), evidence (adversarial
    examples and hashes, for `lightning-paf verify`) and a report (HTML). If files of another evaluation (other weights,
    samples or settings) have these names, the new names end in the identity of the evaluation.

    In validation, every rank evaluates its samples in memory after the last batch, while averaged weights are swapped
    in.

    Attributes:
        fresh: Whether a test removes the records of its state first.

    Args:
        attack: The attack of the evaluation, not that of the training.
        name: Suffix of the metric and prefix of the file names.
        every_n_epochs: Validation epochs between two evaluations; 0 evaluates only in test.
        max_examples: Evaluate only the first samples of the validation set (a fixed subset); null evaluates all.
        test_examples: Evaluate only the first samples of the test set; null evaluates all.
        batch_size: Samples per block.
        seed: Seed of the evaluation; every block derives its own from it.
        search_precision: `bf16` searches faster on hardware that supports it, and confirms every success in fp32.
            `auto` is bf16 on such hardware, otherwise fp32; the result holds the one that was used.
        stop: Stops a test early; the order of the samples is then random. Null evaluates all.
        state_dir: Folder of the test's state; null puts it into the test folder, separately for each set of weights,
            data and settings. Several machines can share it.
        evidence: Whether to write the evidence and the report.
        certify: Method of certificates in test: `ibp`, `crown-ibp`, `crown` or `alpha-crown`. Samples with a
            certificate count as robust and are not attacked. Null attacks all.

    Raises:
        ValueError: A number out of range, a name that is no file name; a state of another evaluation. In the first
            batch: wrong logits, pixels or labels.
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
        search_precision: SearchPrecision = "fp32",
        stop: StopRule | None = None,
        state_dir: Path | None = None,
        evidence: bool = True,
        certify: MethodName | None = None,
    ) -> None:
        for option, value, least in (
            ("every_n_epochs", every_n_epochs, 0),
            ("max_examples", max_examples, 1),
            ("test_examples", test_examples, 1),
            ("batch_size", batch_size, 1),
        ):
            if value is not None and value < least:
                raise ValueError(f"{option} must be at least {least}, got {value}. Pass --SLOT.{option} {least}.")
        _check_name(name)
        self.attack = attack
        self.name = name
        self.every_n_epochs = every_n_epochs
        self.examples: dict[Stage, int | None] = {"val": max_examples, "test": test_examples}
        self.batch_size = batch_size
        self.seed = seed
        self.search_precision = search_precision
        self.stop = stop
        self.state_dir = state_dir
        self.evidence, self.certify = evidence, certify
        self.fresh = False
        self.results: dict[Stage, EvaluationResult] = {}
        self._ids: list[int] = []
        self._seen, self._checked = 0, False
        self._outcomes = torch.empty(0, dtype=torch.int32)
        self._flags: Flags = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the kind of the model, the target, the names and the radius."""
        self._checked = False
        if getattr(pl_module, "kind", "classifier") != "classifier":
            raise ValueError(
                f"The model must be a classifier for the evaluation {self.name}, got {type(pl_module).__name__}. "
                "Pass --val_attack null --autoattack null."
            )
        if (classes := getattr(getattr(pl_module, "model", None), "num_classes", None)) is not None:
            check_classes(self.attack.target, classes)
        named = [c for c in trainer.callbacks if isinstance(c, RobustEval) and c.name == self.name]  # type: ignore[attr-defined]
        if len(named) > 1:
            raise ValueError(
                f"Evaluations must have different names, got {len(named)} with name={self.name}. "
                f"Pass --SLOT.name {self.name}2 for one of them."
            )
        if stage == "fit" and isinstance(trained := getattr(pl_module, "attack", None), Attack):
            self._compare_radius(trained)

    def _compare_radius(self, trained: Attack) -> None:
        """Warn if the training has another radius, apart from 0.031 for 8/255."""
        radius = self.attack.radius
        if trained.norm == self.attack.norm and abs(trained.radius - radius) > 0.1 * radius:
            rank_zero_warn(
                f"{self.name} evaluates at {self.attack.norm} {radius_text(self.attack.eps)}, but the training attack "
                f"has {radius_text(trained.eps)}. Pass --val_attack.attack.eps and --autoattack.attack.eps, too."
            )

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset."""
        self._start("val", trainer)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset."""
        self._start("test", trainer)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int, *_: int
    ) -> None:
        """Check the first batch, and evaluate the samples of this rank on the last one."""
        x, y = images_and_labels(batch)
        if not self._checked and self.every_n_epochs:  # in the sanity check, so that no epoch is lost
            self.attack.check_pixels(x.float())
            probe(_classifier(pl_module), x, y)
            self._checked = True
        self._seen += len(y)
        if self._is_due(trainer) and batch_idx + 1 == trainer.num_val_batches[0]:
            ids = np.array([i for i in dict.fromkeys(self._ids[: self._seen]) if i < len(self._outcomes)], np.int64)
            # Tensors created in inference mode have no gradients.
            with barrier_without_timeout(), torch.inference_mode(False):
                self._check(trainer, _classifier(pl_module), _samples(trainer, trainer.val_dataloaders, ids))

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, *_: int
    ) -> None:
        """Count the samples of this rank."""
        self._seen += len(images_and_labels(batch)[1])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Combine the outcomes of all ranks and log the accuracy."""
        if self._is_due(trainer):
            outcomes = trainer.strategy.reduce(self._outcomes.to(pl_module.device), reduce_op="max")
            codes = outcomes.cpu().numpy().astype(np.uint8)
            result = EvaluationResult(self.name, self.attack.describe(), codes, 0.0, flags=self._flags)
            self._log("val", pl_module, result)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the samples of all ranks; log the accuracy and write the files."""
        ids = self._tested_ids(trainer, pl_module)
        files = ResultFiles.of(run_folder_of(trainer), self.name, self.attack)
        with barrier_without_timeout(), torch.inference_mode(False):
            evaluation = self._evaluation(_classifier(pl_module), _samples(trainer, trainer.test_dataloaders, ids))
            evaluation = replace(evaluation, certify=self.certify)
            if self.search_precision == "auto" and not self.fresh:
                files.check_precision(evaluation.identity, "--autoattack.search_precision ", self.state_dir)
            state = files.state(evaluation.identity, self.state_dir)
            if self.fresh and trainer.is_global_zero:
                state.clear()
            trainer.strategy.barrier()
            spec = getattr(getattr(trainer, "datamodule", None), "spec", None)
            result = evaluation.run(state, self.stop, rank_zero_info if trainer.is_global_zero else None)
            result = replace(
                result,
                name=self.name,
                weights=weights_origin(trainer, pl_module),
                dataset=getattr(spec, "name", "unnamed"),
                class_names=getattr(spec, "class_names", ()),
                checkpoint=Path(trainer.ckpt_path) if trainer.ckpt_path else None,
            )
            self._log("test", pl_module, result)
            if trainer.is_global_zero:
                rank_zero_info(_summary(result, files.write(result, self.evidence)))

    def _is_due(self, trainer: Trainer) -> bool:
        if trainer.sanity_checking or self.every_n_epochs == 0:
            return False
        fitting = trainer.state.fn == TrainerFn.FITTING
        return not fitting or (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def _start(self, stage: Stage, trainer: Trainer) -> None:
        classifier_of(trainer.lightning_module)
        loaders = trainer.val_dataloaders if stage == "val" else trainer.test_dataloaders
        if not isinstance(loaders, DataLoader) or isinstance(loaders.dataset, IterableDataset):
            got = getattr(loaders, "dataset", loaders)
            raise ValueError(
                f"RobustEval must have one DataLoader of a dataset with indices, got {type(got).__name__} as the "
                f"{stage} loader. Return a single DataLoader from {stage}_dataloader."
            )
        self._precision: Precision = resolved(self.search_precision, trainer.strategy.root_device)
        self._ids = [int(i) for i in loaders.sampler]
        size = len(loaders.dataset)  # type: ignore[arg-type]  # a dataset with a sampler has a length
        with torch.inference_mode(False):  # a tensor created in it cannot be modified outside
            self._outcomes = torch.zeros(min(size, self.examples[stage] or size), dtype=torch.int32)
        self._seen = 0

    def _tested_ids(self, trainer: Trainer, pl_module: LightningModule) -> NDArray[np.int64]:
        """Return the ids tested by any rank, in random order for a stop rule."""
        tested = torch.zeros(len(self._outcomes), dtype=torch.int32)
        tested[[i for i in self._ids[: self._seen] if i < len(tested)]] = 1
        tested = trainer.strategy.reduce(tested.to(pl_module.device), reduce_op="max")
        ids: NDArray[np.int64] = tested.nonzero().flatten().cpu().numpy()
        return ids if self.stop is None else np.random.default_rng(self.seed).permutation(ids)

    def _check(self, trainer: Trainer, model: nn.Module, samples: Samples) -> None:
        """Evaluate in memory; subclasses may override it."""
        if len(samples) > 0:  # empty if all samples of this rank are after `max_examples`
            result = self._evaluation(model, samples).run()
            self._outcomes[torch.from_numpy(result.ids)] = torch.from_numpy(result.outcomes).int()
            self._flags = result.flags

    def _evaluation(self, model: nn.Module, samples: Samples) -> Evaluation:
        return Evaluation(model, self.attack, samples, self.seed, self.batch_size, self._precision)

    def _log(self, stage: Stage, pl_module: LightningModule, result: EvaluationResult) -> None:
        self.results[stage] = result
        # All ranks log the same value; without `sync_dist` Lightning warns of epoch metrics that are not reduced.
        pl_module.log(f"{stage}/acc_{self.name}", result.robust.value, prog_bar=True, sync_dist=True)


def _check_name(name: str) -> None:
    if not re.fullmatch(_NAME, name):
        raise ValueError(
            "name must be 1 to 64 letters, digits, `_`, `-` and `.`, and not start with `.`, since it names files, "
            f"got {name!r}. Pass --SLOT.name autoattack."
        )


def _classifier(pl_module: LightningModule) -> nn.Module:
    """Return the classifier in a module, without wrappers, in float32.

    Weights of another precision are copied. A checkpoint is loaded in float32, so that others verify the same network.
    """
    model = classifier_of(pl_module)
    single = all(tensor.dtype == torch.float32 for tensor in model.state_dict().values() if tensor.is_floating_point())
    return model if single else copy.deepcopy(model).float()


def fetch(trainer: Trainer, loader: Any, indices: list[int]) -> tuple[Tensor, Tensor]:
    """Load images and labels of a loader's dataset, prepared and moved like batches.

    Returns:
        Images (N, C, H, W), float32, and labels (N,).
    """
    batched = getattr(loader.dataset, "__getitems__", None)
    rows = batched(indices) if batched else [loader.dataset[i] for i in indices]
    x, y = images_and_labels(trainer.strategy.batch_to_device(loader.collate_fn(rows)))
    return x.float(), y


def _samples(trainer: Trainer, loader: Any, ids: NDArray[np.int64]) -> Samples:
    return Samples(ids, lambda ids: fetch(trainer, loader, ids.tolist()))


def _summary(result: EvaluationResult, files: ResultFiles) -> str:
    attack = result.attack
    stopped = f" (of {result.total}; on all of them {result.anytime}, whenever stopped)" if result.anytime else ""
    worst = min(result.per_class(), key=lambda row: row.robust / row.evaluated, default=None)
    least = (
        f", {worst.robust} of {worst.evaluated} in {result.class_name(worst.label)}, the least robust" if worst else ""
    )
    pairs = result.per_pair()
    if pairs:
        least = f", {sum(row.fooled for row in pairs)} of {sum(row.attacked for row in pairs)} classified as the target"
    flags = f"Flags: {', '.join(result.flags)}. " if result.flags else ""
    certified = f"certified {result.certified_robust} <= " if result.certified_robust else ""
    return (
        f"{result.name}: {certified}robust {result.robust}, clean {result.clean} on {result.evaluated} "
        f"samples{stopped}{least}; "
        f"{attack['attack']} {attack['norm']} eps {attack['eps']}; {result.weights}. {flags}{files.summary()}"
    )
