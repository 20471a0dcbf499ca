"""Evaluation of robust accuracy, its result and its statistics."""

from lightning_paf.evaluation.evaluate import Evaluation
from lightning_paf.evaluation.outcomes import Outcome
from lightning_paf.evaluation.result import EvaluationResult, SubAttackSummary
from lightning_paf.evaluation.samples import Samples
from lightning_paf.evaluation.state import EvaluationState, MemoryState
from lightning_paf.evaluation.statistics import Accuracy, Difference, exact_accuracy, paired_difference

__all__ = [
    "Accuracy",
    "Difference",
    "Evaluation",
    "EvaluationResult",
    "EvaluationState",
    "MemoryState",
    "Outcome",
    "Samples",
    "SubAttackSummary",
    "exact_accuracy",
    "paired_difference",
]
