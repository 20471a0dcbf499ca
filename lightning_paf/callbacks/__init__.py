"""Callbacks of the trainer: evaluation, weight averaging, monitoring, predictions."""

from lightning_paf.callbacks.activation_monitor import ActivationMonitor as ActivationMonitor
from lightning_paf.callbacks.added_checkpoint import AddedCheckpoint as AddedCheckpoint
from lightning_paf.callbacks.adversarial_training import AdversarialTraining as AdversarialTraining
from lightning_paf.callbacks.averaging import WarmupEMA as WarmupEMA
from lightning_paf.callbacks.batchnorm_start import BatchNormStart as BatchNormStart
from lightning_paf.callbacks.epoch_printer import EpochPrinter as EpochPrinter
from lightning_paf.callbacks.exact_resume import ExactResume as ExactResume
from lightning_paf.callbacks.jacobian_spectrum import JacobianSpectrum as JacobianSpectrum
from lightning_paf.callbacks.monitor_check import MonitorCheck as MonitorCheck
from lightning_paf.callbacks.overfitting_detector import OverfittingDetector as OverfittingDetector
from lightning_paf.callbacks.predictions import PredictionWriter as PredictionWriter
from lightning_paf.callbacks.radius_schedule import RadiusSchedule as RadiusSchedule
from lightning_paf.callbacks.robust_eval import RobustEval as RobustEval
from lightning_paf.callbacks.run_heartbeat import RunHeartbeat as RunHeartbeat
from lightning_paf.callbacks.stop_on_signal import StopOnSignal as StopOnSignal
from lightning_paf.callbacks.throughput import Throughput as Throughput
from lightning_paf.callbacks.warm_eval import WarmEval as WarmEval
