"""Initialisation of running statistics with the first batch."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.nn.modules.batchnorm import _BatchNorm


class BatchNormStart(Callback):
    """Momentum 1 for every BatchNorm in the first step of a training.

    The running statistics then start with the first batch instead of their initial values, whose influence lasts for
    hundreds of steps at the momentum 0.01 of Gowal et al. (2020). Their code does the same, as does the PyTorch code of
    Rade & Moosavi-Dezfooli and of Wang et al. (2023).
    """

    def __init__(self) -> None:
        self._momenta: list[tuple[_BatchNorm, float | None]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the momenta to 1 before the first step."""
        if trainer.global_step == 0 and not self._momenta:
            layers = [layer for layer in pl_module.modules() if isinstance(layer, _BatchNorm)]
            self._momenta = [(layer, layer.momentum) for layer in layers]
            for layer in layers:
                layer.momentum = 1.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Restore the momenta after the first step."""
        if trainer.global_step > 0:
            self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the momenta."""
        self._restore()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the momenta."""
        self._restore()

    def _restore(self) -> None:
        for layer, momentum in self._momenta:
            layer.momentum = momentum
        self._momenta = []
