"""The files of an evaluation: state, result, evidence and report."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from lightning_paf.attacks import Attack
from lightning_paf.evaluation import evidence, report
from lightning_paf.evaluation.confidence import confidence_of
from lightning_paf.evaluation.identity import Identity
from lightning_paf.evaluation.report.report import supplement_of
from lightning_paf.evaluation.result import EvaluationResult
from lightning_paf.evaluation.state import EvaluationState
from lightning_paf.runs.config_file import run_of
from lightning_paf.runs.resume_check import CONFIG
from lightning_paf.speed.search_model import Precision
from lightning_paf.utils.files import parse_json

_DIGITS = 8
_OTHER: Mapping[Precision, Precision] = MappingProxyType({"fp32": "bf16", "bf16": "fp32"})


@dataclass(frozen=True)
class ResultFiles:
    """Paths of the files of one evaluation.

    Attributes:
        folder: Folder of all files.
        stem: Common beginning of the names, such as `autoattack_linf_8-255`.
        plain: `stem` without the suffix that distinguishes two evaluations.
    """

    folder: Path
    stem: str
    plain: str

    @classmethod
    def of(cls, folder: Path, name: str, attack: Attack) -> "ResultFiles":
        """Build the paths from the name of the evaluation, and norm and radius."""
        threat = attack.describe()
        stem = f"{name}_{threat['norm']}_{str(threat['eps']).replace('/', '-')}"
        return cls(folder, stem, stem)

    @property
    def result(self) -> Path:
        """The result, JSON."""
        return self.folder / f"{self.stem}.json"

    @property
    def evidence(self) -> Path:
        """The evidence for `lightning-paf verify`."""
        return self.folder / f"{self.stem}{evidence.SUFFIX}"

    @property
    def report(self) -> Path:
        """The report, HTML."""
        return self.folder / f"{self.stem}.html"

    def state(self, identity: Identity, folder: Path | None = None) -> EvaluationState:
        """Return the state in a folder; by default in a separate one for each identity."""
        return EvaluationState(folder or self.folder / "state" / f"{self.plain}-{identity.fingerprint[:12]}")

    def check_precision(self, identity: Identity, option: str, folder: Path | None = None) -> None:
        """Check that `search_precision=auto` continues no other precision.

        Args:
            identity: The evaluation in the precision of this device.
            option: Beginning of the option that sets the precision.
            folder: As in `state`.

        Raises:
            ValueError: It exists, for example from a machine with another processor.
        """
        precision = identity.precision
        other = replace(identity, precision=_OTHER[precision])
        if (state := self.state(other, folder)).belongs_to(other):
            raise ValueError(
                f"The search precision must be that of {state} to resume it, which is {other.precision}, got auto, "
                f"which is {precision} on this device. Pass {option}{other.precision} to resume, or {precision} to "
                "start again."
            )

    def write(self, result: EvaluationResult, with_evidence: bool = True) -> "ResultFiles":
        """Write result, evidence and report; keep the files of other evaluations.

        The files have the plain names if these are free or belong to the same evaluation, otherwise names that end in
        the first digits of the identity. Results of untrained weights never have the plain names.

        Returns:
            The files that were written.
        """
        plain = replace(self, stem=self.plain)
        exists = any(path.exists() for path in (plain.result, plain.evidence, plain.report))
        untrained = result.weights is not None and result.weights.untrained
        taken = untrained or (exists and plain._identity() != result.identity)
        files = replace(self, stem=f"{self.plain}-{str(result.identity)[:_DIGITS]}") if taken else plain
        result = replace(result, calibration=confidence_of(result))
        result.save(files.result)
        if with_evidence:
            files._write_evidence(result)
        return files

    def summary(self) -> str:
        """List the written files, and the kept result of another evaluation."""
        paths = (self.result, self.evidence, self.report)
        plain = replace(self, stem=self.plain).result
        other = plain != self.result and plain.exists()
        kept = f" {plain} belongs to another evaluation and was kept." if other else ""
        return f"Written: {', '.join(str(path) for path in paths if path.exists())}.{kept}"

    def _write_evidence(self, result: EvaluationResult) -> None:
        evaluation, checkpoint = result.evaluation, result.checkpoint
        assert evaluation is not None
        config = run_of(checkpoint) / CONFIG if checkpoint else None
        content = evidence.write(
            result,
            self.evidence,
            evaluation.samples,
            dataset=result.dataset,
            config=config.read_text() if config is not None and config.is_file() else None,
        )
        written, title = (self.evidence, content), self.folder.resolve().parent.name
        supplement = supplement_of(
            title, result.dataset, result.class_names, checkpoint, written, evaluation.model, evaluation.samples
        )
        report.write(result, self.report, supplement)

    def _identity(self) -> object:
        """Return the identity in the result file; None if it is unknown."""
        try:
            return parse_json(self.result.read_text())["identity"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
