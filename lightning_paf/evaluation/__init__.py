"""Verdicts and their statistics."""

from lightning_paf.evaluation.result import EvaluationResult, Verdict
from lightning_paf.evaluation.statistics import Accuracy, Difference, exact_accuracy, paired_difference

__all__ = ["Accuracy", "Difference", "EvaluationResult", "Verdict", "exact_accuracy", "paired_difference"]
