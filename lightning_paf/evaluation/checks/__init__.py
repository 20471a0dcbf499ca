"""Signs of masked gradients and of mistakes in an evaluation, one class each."""

from lightning_paf.evaluation.checks.base import Finding, Symptom, smallest_gain
from lightning_paf.evaluation.checks.behaviour import BatchDependence, RandomOutputs, TrainMode
from lightning_paf.evaluation.checks.context import Patient
from lightning_paf.evaluation.checks.gradients import FiniteDifferences, ZeroGradients
from lightning_paf.evaluation.checks.inputs import Normalisation, PixelRange
from lightning_paf.evaluation.checks.outputs import CleanAccuracy, FiniteOutputs, SoftmaxOutputs
from lightning_paf.evaluation.checks.white_box import GrowingEps, LogitScale, MoreStarts, MoreSteps
from lightning_paf.evaluation.checks.without_gradients import BlackBox, Transfer

__all__ = [
    "BatchDependence",
    "BlackBox",
    "CleanAccuracy",
    "Finding",
    "FiniteDifferences",
    "FiniteOutputs",
    "GrowingEps",
    "LogitScale",
    "MoreStarts",
    "MoreSteps",
    "Normalisation",
    "Patient",
    "PixelRange",
    "RandomOutputs",
    "SoftmaxOutputs",
    "Symptom",
    "TrainMode",
    "Transfer",
    "ZeroGradients",
    "smallest_gain",
]
