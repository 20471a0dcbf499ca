"""Largest singular values of the network's Jacobians during training."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from lightning_paf.callbacks.classifier_of import classifier_of
from lightning_paf.nn.jacobian_spectrum import jacobian_spectrum
from lightning_paf.nn.residual_chain import ResidualChain
from lightning_paf.types import Batch, images_and_labels


class JacobianSpectrum(Callback):
    """Largest singular values of embedding, residual blocks and head during training.

    Logs `jacobian/embedding`, `jacobian/{block}` and `jacobian/head`, and `jacobian/log_bound`: the natural logarithm
    of the largest growth of a small perturbation from the first to the last block (Wang and Ruan 2022). All are means
    over the first images of the validation, on several devices over those of all.

    Runs after the first validation batch of `fit`, while averaged weights are swapped in. The sanity check only checks
    that the network has residual blocks.

    Args:
        every_n_epochs: Training epochs between two measurements; the last epoch is always measured.
        max_examples: Number of images of the first validation batch.
        iterations: Steps of the power iteration.

    Raises:
        ValueError: A number below 1; a network without residual blocks.
    """

    def __init__(self, every_n_epochs: int = 1, max_examples: int = 8, iterations: int = 20) -> None:
        options = {"every_n_epochs": every_n_epochs, "max_examples": max_examples, "iterations": iterations}
        for option, value in options.items():
            if value < 1:
                raise ValueError(f"{option} must be at least 1, got {value}. Pass {option}: 1.")
        self.every_n_epochs = every_n_epochs
        self.max_examples = max_examples
        self.iterations = iterations

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Measure and log after the first batch."""
        if batch_idx or dataloader_idx or trainer.state.fn != TrainerFn.FITTING:
            return
        model = classifier_of(pl_module)
        with torch.inference_mode(False):
            x = images_and_labels(batch)[0][: self.max_examples].clone()
            if trainer.sanity_checking:
                ResidualChain(model, x)
                return
            done = trainer.current_epoch + 1
            if done % self.every_n_epochs and done != trainer.max_epochs:
                return
            found = jacobian_spectrum(model, x, self.iterations)
        values = {"embedding": found.embedding, **found.blocks, "head": found.head}
        values["log_bound"] = found.log_bounds()["product"]
        logs = {f"jacobian/{name}": value.mean() for name, value in values.items()}
        pl_module.log_dict(logs, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)
