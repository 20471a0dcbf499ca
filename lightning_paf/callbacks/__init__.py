"""Callbacks of the trainer: evaluation, weight averaging, monitoring, predictions."""

from lightning_paf.callbacks.activation_monitor import ActivationMonitor
from lightning_paf.callbacks.averaging import WarmupEMA
from lightning_paf.callbacks.batchnorm_start import BatchNormStart
from lightning_paf.callbacks.epoch_printer import EpochPrinter
from lightning_paf.callbacks.exact_resume import ExactResume
from lightning_paf.callbacks.overfitting_detector import OverfittingDetector
from lightning_paf.callbacks.predictions import PredictionWriter
from lightning_paf.callbacks.radius_schedule import RadiusSchedule
from lightning_paf.callbacks.robust_eval import RobustEval
from lightning_paf.callbacks.run_heartbeat import RunHeartbeat
from lightning_paf.callbacks.stop_on_signal import StopOnSignal
from lightning_paf.callbacks.throughput import Throughput
from lightning_paf.callbacks.warm_eval import WarmEval

__all__ = [
    "ActivationMonitor",
    "BatchNormStart",
    "EpochPrinter",
    "ExactResume",
    "OverfittingDetector",
    "PredictionWriter",
    "RadiusSchedule",
    "RobustEval",
    "RunHeartbeat",
    "StopOnSignal",
    "Throughput",
    "WarmEval",
    "WarmupEMA",
]
