"""Parameters and plots of the activations during training."""

import math
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_paf.nn.activations import Activation
from lightning_paf.nn.activations.plot import ActivationSite, draw_activations, inputs_of
from lightning_paf.runs.folder import run_folder_of
from lightning_paf.types import Batch, images_and_labels
from lightning_paf.utils.figures import figure_png
from lightning_paf.utils.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGE_BETA = 0.8
"""Limit of |beta|; above it, the curvature is over 5 times that at beta = 0."""

SMALL_ALPHA = 0.05
"""Limit of |alpha|, below which an activation has collapsed.

PSiLU is then nearly linear, PSoftplus nearly constant, and PReLU+ nearly zero.
"""


class ActivationMonitor(Callback):
    """Monitor of the parameters and shapes of all activations.

    Plots every activation over a histogram of its inputs. Logs `activation/alpha`, `activation/beta` (means over
    channels), `activation/max_curvature`, `activation/max_slope` and `activation/mean_on_negative`; in a network with
    several activations, `activation/{layer}/alpha` and so on. Infinite quantities (the curvature of ReLU) are omitted.
    The figure is written to `activations/epoch_XXXX.png` and `activation.png` (the latest) in the run folder, and to
    TensorBoard.

    Runs after the first validation batch of `fit`, while averaged weights are swapped in, but not in the sanity check.
    Without a validation, or without an `Activation` in the network, nothing is logged. Only the first process plots.

    Args:
        every_n_epochs: Training epochs between two measurements; the last epoch is always measured.
        picture: Whether to plot.
        max_examples: Number of images of the first validation batch for the histogram.

    Raises:
        ValueError: A number below 1.
    """

    def __init__(self, every_n_epochs: int = 1, picture: bool = True, max_examples: int = 256) -> None:
        for option, value in (("every_n_epochs", every_n_epochs), ("max_examples", max_examples)):
            if value < 1:
                raise ValueError(f"{option} must be at least 1, got {value}. Pass --monitor.{option} 1.")
        self.every_n_epochs = every_n_epochs
        self.picture = picture
        self.max_examples = max_examples
        self._initial: dict[str, dict[str, Tensor]] = {}
        self._folder = Path()
        self._warned: set[str] = set()

    def state_dict(self) -> dict[str, Any]:
        """Return the initial parameters, for the initial curves in plots of a resumed run."""
        return {"initial": self._initial}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the initial parameters."""
        self._initial = state_dict["initial"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the initial parameters, unless a checkpoint had them, and the run folder."""
        activations = _activations(pl_module)
        if self._initial.keys() != activations.keys():
            self._initial = {
                name: {key: value.cpu().clone() for key, value in activation.state_dict().items()}
                for name, activation in activations.items()
            }
        # On all ranks.
        self._folder = run_folder_of(trainer)

    @torch.no_grad()
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Log and plot after the first batch."""
        activations = _activations(pl_module)
        if batch_idx or dataloader_idx or not activations or not self._due(trainer):
            return
        for name, activation in activations.items():
            quantities = _quantities(activation)
            prefix = "activation" if len(activations) == 1 else f"activation/{name}"
            logs = {f"{prefix}/{key}": value for key, value in quantities.items()}
            # All ranks log the same; without `sync_dist` Lightning warns of epoch metrics that are not reduced.
            pl_module.log_dict(logs, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)
            self._warn(name, activation)
        if self.picture and trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False):
            inputs = inputs_of(activations, lambda: pl_module(images_and_labels(batch)[0][: self.max_examples]))
            if inputs:
                self._save(trainer, self._draw(trainer, activations, inputs))

    def _due(self, trainer: Trainer) -> bool:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return False
        done = trainer.current_epoch + 1
        return done % self.every_n_epochs == 0 or done == trainer.max_epochs

    def _warn(self, name: str, activation: Activation) -> None:
        """Warn once of |beta| close to 1, and once of a collapsed alpha."""
        values = {key: value.abs() for key, value in _parameters(activation).items()}
        beta, alpha = values.get("beta", torch.empty(0)), values.get("alpha", torch.empty(0))
        if "beta" not in self._warned and (beta > LARGE_BETA).any():
            self._warned.add("beta")
            rank_zero_warn(
                f"|beta| of activation {name} is {float(beta.max()):.3g}, and the activation divides by 1 - |beta|. "
                "Raise --model.activation.penalty_weight, or lower the learning rate."
            )
        # PReLU and ReBLU start at alpha = 0.
        initial = self._initial[name].get("alpha", alpha).flatten().abs()
        if "alpha" not in self._warned and ((alpha < SMALL_ALPHA) & (initial >= SMALL_ALPHA)).any():
            self._warned.add("alpha")
            rank_zero_warn(
                f"|alpha| of activation {name} has collapsed to {float(alpha.min()):.3g}. Lower the learning rate, or "
                "exclude alpha from weight decay with --model.decay weights."
            )

    def _draw(self, trainer: Trainer, activations: Mapping[str, Activation], inputs: Mapping[str, Tensor]) -> "Figure":
        sites = []
        for name, values in inputs.items():
            activation = activations[name]
            initial = deepcopy(activation) if self._initial[name] else None
            if initial is not None:
                initial.load_state_dict(self._initial[name])
            title = "" if len(activations) == 1 else f"{name}\n"
            sites.append(ActivationSite(title + _describe(activation), activation, initial, values))
        kinds = ", ".join(sorted({type(activation).__name__ for activation in activations.values()}))
        return draw_activations(sites, f"{kinds} after epoch {trainer.current_epoch + 1}")

    def _save(self, trainer: Trainer, figure: "Figure") -> None:
        content = figure_png(figure)
        path = self._folder / "activations" / f"epoch_{trainer.current_epoch:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        for file in (path, self._folder / "activation.png"):
            write_whole(file, content)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                pixels = np.asarray(figure.canvas.buffer_rgba())  # type: ignore[attr-defined]  # the canvas is Agg's
                logger.experiment.add_image("activation", pixels, trainer.global_step, dataformats="HWC")


def _activations(module: nn.Module) -> dict[str, Activation]:
    """Return every activation with its first name in the module."""
    found = {name: layer for name, layer in module.named_modules() if isinstance(layer, Activation)}
    return {name.removeprefix("model.").removeprefix("net."): layer for name, layer in found.items()}


def _parameters(activation: Activation) -> dict[str, Tensor]:
    """Return alpha and beta (C,) on the CPU, those that the activation has."""
    values = {name: getattr(activation, name, None) for name in ("alpha", "beta")}
    return {name: value.detach().flatten().cpu() for name, value in values.items() if isinstance(value, Tensor)}


def _quantities(activation: Activation) -> dict[str, float]:
    """Return the finite quantities to log."""
    shape = activation.shape()
    found = {name: getattr(shape, name) for name in ("max_curvature", "max_slope", "mean_on_negative")}
    found |= {name: float(value.mean()) for name, value in _parameters(activation).items()}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _describe(activation: Activation) -> str:
    """Format the title of a panel, as in `α = 2.6, β = 0.01, max curvature 1.3`."""
    found = []
    for name, value in _parameters(activation).items():
        limits = f" ({float(value.min()):.3g} … {float(value.max()):.3g})" if value.numel() > 1 else ""
        found.append(f"{'α' if name == 'alpha' else 'β'} = {float(value.mean()):.3g}{limits}")
    curvature = activation.shape().max_curvature
    return ", ".join([*found, f"max curvature {curvature:.3g}" if math.isfinite(curvature) else "max curvature ∞"])
