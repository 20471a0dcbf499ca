"""Verdicts and their statistics."""

from lightning_paf.evaluation.evaluate import judge
from lightning_paf.evaluation.judgement import ClassRow, Judgement
from lightning_paf.evaluation.result import EvaluationResult, StageSummary, Verdict
from lightning_paf.evaluation.samples import Samples
from lightning_paf.evaluation.state import Ledger, MemoryLedger
from lightning_paf.evaluation.statistics import Accuracy, Difference, exact_accuracy, paired_difference

__all__ = [
    "Accuracy",
    "ClassRow",
    "Difference",
    "EvaluationResult",
    "Judgement",
    "Ledger",
    "MemoryLedger",
    "Samples",
    "StageSummary",
    "Verdict",
    "exact_accuracy",
    "judge",
    "paired_difference",
]
