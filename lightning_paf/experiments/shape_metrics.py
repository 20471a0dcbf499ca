"""Metrics of the activation that all layers of a trained network share."""

import math

from torch import Tensor

from lightning_paf.experiments.experiment import Metric
from lightning_paf.loading import Run
from lightning_paf.nn.activations import Activation


def _activation(run: Run) -> Activation:
    return next(layer for layer in run.model.modules() if isinstance(layer, Activation))


def alpha(run: Run, x: Tensor, y: Tensor) -> float:
    """alpha; NaN if the activation has none."""
    value = getattr(_activation(run), "alpha", None)
    return math.nan if value is None else float(value.detach().mean())


def beta(run: Run, x: Tensor, y: Tensor) -> float:
    """Magnitude of beta; NaN if the activation has none."""
    value = getattr(_activation(run), "beta", None)
    return math.nan if value is None else float(value.detach().abs().mean())


def of_shape(quantity: str) -> Metric:
    """Metric: an attribute of `ActivationShape` at the learned parameters."""

    def metric(run: Run, x: Tensor, y: Tensor) -> float:
        return float(getattr(_activation(run).shape(), quantity))

    return metric
