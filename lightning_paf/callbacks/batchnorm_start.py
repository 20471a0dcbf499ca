"""Running statistics initialised with the first batch."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.nn.modules.batchnorm import _BatchNorm


class BatchNormStart(Callback):
    """Gives every BatchNorm the momentum 1 for the first step of a training, and its own afterwards.

    The running statistics are then those of the first batch, and not their meaningless initial values, which take
    hundreds of steps to forget at the momentum 0.01 of Gowal et al. (2020). So begins their code, and the PyTorch code
    of Rade & Moosavi-Dezfooli and of Wang et al. (2023).
    """

    def __init__(self) -> None:
        self._momenta: list[tuple[_BatchNorm, float | None]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Take over the statistics of this batch, if it is the first."""
        if trainer.global_step == 0 and not self._momenta:
            layers = [layer for layer in pl_module.modules() if isinstance(layer, _BatchNorm)]
            self._momenta = [(layer, layer.momentum) for layer in layers]
            for layer in layers:
                layer.momentum = 1.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Put the momenta back after the first step."""
        if trainer.global_step > 0:
            self._put_back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the momenta back."""
        self._put_back()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the momenta back."""
        self._put_back()

    def _put_back(self) -> None:
        for layer, momentum in self._momenta:
            layer.momentum = momentum
        self._momenta = []
