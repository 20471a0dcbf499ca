"""Files of one evaluation: ledger, result, evidence and report."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import nn

from lightning_paf.attacks import Attack
from lightning_paf.evaluation import evidence, report
from lightning_paf.evaluation.identity import Header
from lightning_paf.evaluation.judgement import Judgement
from lightning_paf.evaluation.report.evidence import supplement_of
from lightning_paf.evaluation.result import EvaluationResult
from lightning_paf.evaluation.samples import Samples
from lightning_paf.evaluation.state import Ledger
from lightning_paf.runs.weights_origin import WeightsOrigin

_DIGITS = 8


@dataclass(frozen=True)
class VerdictFiles:
    """Where the files of one evaluation lie.

    Attributes:
        folder: Of the test.
        name: What the names begin with: the evaluation and its threat model, as in `autoattack_linf_8-255`.
        dataset: Name of the data.
        checkpoint: File that was tested; None for weights in memory.
        weights: Origin of the weights.
        suffix: End of the names, where another evaluation has the plain ones.
    """

    folder: Path
    name: str
    dataset: str
    checkpoint: Path | None
    weights: WeightsOrigin
    suffix: str = ""

    @classmethod
    def of(cls, trainer: Trainer, pl_module: LightningModule, name: str, attack: Attack) -> "VerdictFiles":
        """Those of a test; to be called on every rank."""
        spec = getattr(getattr(trainer, "datamodule", None), "spec", None)
        return cls(
            Path(trainer.log_dir or trainer.default_root_dir),  # the property broadcasts
            f"{name}_{threat_label(attack)}",
            getattr(spec, "name", "unnamed"),
            Path(trainer.ckpt_path) if trainer.ckpt_path else None,
            weights_origin(trainer, pl_module),
        )

    def of_evaluation(self, identity: str) -> "VerdictFiles":
        """Choose names that replace no other evaluation.

        The plain names, if they are free or belong to the same evaluation; otherwise names that end in the first digits
        of the identity. Untrained weights never get the plain ones.

        Args:
            identity: Fingerprint of the evaluation.
        """
        plain = replace(self, suffix="")
        holders = [plain._identity()] if any(path.exists() for path in plain.all()) else []
        taken = self.weights.untrained or any(holder != identity for holder in holders)
        return replace(self, suffix=f"-{identity[:_DIGITS]}" if taken else "")

    def all(self) -> tuple[Path, Path, Path]:
        """Result, evidence and report."""
        return self.result, self.evidence, self.report

    @property
    def stem(self) -> str:
        """What the names of result, evidence and report have in common."""
        return self.name + self.suffix

    @property
    def result(self) -> Path:
        """Verdicts of all samples, JSON."""
        return self.folder / f"{self.stem}.json"

    @property
    def evidence(self) -> Path:
        """What `lightning-paf verify` checks."""
        return self.folder / f"{self.stem}{evidence.SUFFIX}"

    @property
    def report(self) -> Path:
        """For people."""
        return self.folder / f"{self.stem}.html"

    def ledger(self, header: Header, folder: Path | None = None) -> Ledger:
        """The ledger in a folder; by default in one of its own for each set of weights, data, settings and code."""
        return Ledger(folder or self.folder / "ledger" / f"{self.name}-{header.fingerprint[:12]}")

    def write_evidence(
        self, result: EvaluationResult, judgement: Judgement, model: nn.Module, samples: Samples
    ) -> None:
        """Write evidence and report."""
        path = self.checkpoint.parent.parent / "config.yaml" if self.checkpoint else None
        config = path.read_text() if path is not None and path.is_file() else None
        content = evidence.write(judgement, self.evidence, samples, dataset=self.dataset, config=config)
        run, source = self.folder.resolve().parent.name, (self.evidence, content)
        supplement = supplement_of(run, self.dataset, self.checkpoint, source, model, samples)
        report.write(result, self.report, supplement)

    def summary(self) -> str:
        """The files that were written, and that others were kept."""
        written = ", ".join(str(path) for path in self.all() if path.exists())
        plain = replace(self, suffix="").result
        kept = f" {plain} holds another evaluation and was kept." if self.suffix and plain.exists() else ""
        return f"Written: {written}.{kept}"

    def _identity(self) -> Any:
        """Identity of the evaluation that has these names; None where it is not known."""
        try:
            return json.loads(self.result.read_text())["identity"]
        except (OSError, ValueError, KeyError, TypeError):
            return None


def threat_label(attack: Attack) -> str:
    """Norm and radius for a file name, as in `linf_8-255`."""
    threat = attack.describe()
    return f"{threat['norm']}_{str(threat['eps']).replace('/', '-')}"


def weights_origin(trainer: Trainer, pl_module: LightningModule) -> WeightsOrigin:
    """Origin of the weights that a trainer evaluates."""
    if trainer.ckpt_path:
        return WeightsOrigin.of_checkpoint(Path(trainer.ckpt_path))
    untrained: WeightsOrigin | None = getattr(pl_module, "untrained", None)
    return untrained or WeightsOrigin("weights in memory", trainer.global_step, trainer.current_epoch)
