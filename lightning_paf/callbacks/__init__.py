"""What happens around the training: evaluation, weight averaging, monitoring, predictions."""

from lightning_paf.callbacks.activation_monitor import ActivationMonitor
from lightning_paf.callbacks.averaging import WarmupEMA
from lightning_paf.callbacks.batchnorm_start import BatchNormStart
from lightning_paf.callbacks.epoch_line import EpochLine
from lightning_paf.callbacks.exact_resume import ExactResume
from lightning_paf.callbacks.overfitting_detector import OverfittingDetector
from lightning_paf.callbacks.predictions import PredictionWriter
from lightning_paf.callbacks.progress_file import ProgressFile
from lightning_paf.callbacks.radius_schedule import RadiusSchedule
from lightning_paf.callbacks.rank_watch import RankWatch
from lightning_paf.callbacks.robust_eval import RobustEval
from lightning_paf.callbacks.stop_on_signal import StopOnSignal
from lightning_paf.callbacks.throughput import Throughput
from lightning_paf.callbacks.warm_eval import WarmEval

__all__ = [
    "ActivationMonitor",
    "BatchNormStart",
    "EpochLine",
    "ExactResume",
    "OverfittingDetector",
    "PredictionWriter",
    "ProgressFile",
    "RadiusSchedule",
    "RankWatch",
    "RobustEval",
    "StopOnSignal",
    "Throughput",
    "WarmEval",
    "WarmupEMA",
]
