"""Signs of masked gradients and of mistakes in an evaluation, one class each."""

from lightning_paf.evaluation.symptoms.base import Finding, Symptom, smallest_gain
from lightning_paf.evaluation.symptoms.behaviour import BatchDependence, RandomOutputs, TrainMode
from lightning_paf.evaluation.symptoms.gradients import FiniteDifferences, ZeroGradients
from lightning_paf.evaluation.symptoms.inputs import Normalisation, PixelRange
from lightning_paf.evaluation.symptoms.outputs import CleanAccuracy, FiniteOutputs, SoftmaxOutputs
from lightning_paf.evaluation.symptoms.patient import Patient
from lightning_paf.evaluation.symptoms.white_box import GrowingEps, LogitScale, MoreStarts, MoreSteps
from lightning_paf.evaluation.symptoms.without_gradients import BlackBox, Transfer

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
