"""What a test leaves behind: ledger, result, receipt and report."""

from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch import Trainer
from torch import nn

from lightning_paf.attacks import Attack
from lightning_paf.evaluation import report
from lightning_paf.evaluation.header import Header
from lightning_paf.evaluation.judgement import Judgement
from lightning_paf.evaluation.ledger import Ledger
from lightning_paf.evaluation.receipt import write_receipt
from lightning_paf.evaluation.report.evidence import supplement_of
from lightning_paf.evaluation.result import EvaluationResult
from lightning_paf.evaluation.samples import Samples


@dataclass(frozen=True)
class VerdictFiles:
    """Where the files of one evaluation lie.

    Attributes:
        folder: Of the test.
        stem: What the names begin with: the evaluation and its threat model, as in `autoattack_linf_8-255`.
        dataset: Name of the data.
        checkpoint: What was tested; None for weights in memory.
    """

    folder: Path
    stem: str
    dataset: str
    checkpoint: Path | None

    @classmethod
    def of(cls, trainer: Trainer, name: str, attack: Attack) -> "VerdictFiles":
        """Those of a test; to be called on every rank."""
        threat = attack.describe()
        label = f"{threat['norm']}_{str(threat['eps']).replace('/', '-')}"
        spec = getattr(getattr(trainer, "datamodule", None), "spec", None)
        return cls(
            Path(trainer.log_dir or trainer.default_root_dir),  # the property broadcasts
            f"{name}_{label}",
            getattr(spec, "name", "unnamed"),
            Path(trainer.ckpt_path) if trainer.ckpt_path else None,
        )

    @property
    def result(self) -> Path:
        """Verdicts of all samples, JSON."""
        return self.folder / f"{self.stem}.json"

    @property
    def receipt(self) -> Path:
        """What `lightning-paf verify` checks."""
        return self.folder / f"{self.stem}.receipt.safetensors"

    @property
    def report(self) -> Path:
        """For people."""
        return self.folder / f"{self.stem}.html"

    def ledger(self, header: Header, folder: Path | None = None) -> Ledger:
        """The ledger in a folder; by default in one of its own for each set of weights, data, settings and code."""
        return Ledger(folder or self.folder / "ledger" / f"{self.stem}-{header.fingerprint[:12]}")

    def write_evidence(
        self, result: EvaluationResult, judgement: Judgement, model: nn.Module, samples: Samples, attack: Attack
    ) -> None:
        """Write receipt and report."""
        header = judgement.header
        config = self.checkpoint.parent.parent / "config.yaml" if self.checkpoint else None
        receipt = write_receipt(
            self.receipt,
            judgement,
            model,
            samples,
            attack=attack,
            seed=header.seed,
            block_size=header.block_size,
            precision=header.precision,
            config_text=config.read_text() if config is not None and config.is_file() else None,
            dataset=self.dataset,
        )
        run, evidence = self.folder.resolve().parent.name, (self.receipt, receipt)
        report.write(result, self.report, supplement_of(run, self.dataset, self.checkpoint, evidence, model, samples))
