"""Adversarial training of any LightningModule."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_paf.attacks import Attack
from lightning_paf.attacks.probe import probe
from lightning_paf.callbacks.classifier_of import classifier_of
from lightning_paf.types import images_and_labels


class AdversarialTraining(Callback):
    """Adversarial training of any LightningModule with `forward(x) -> logits`.

    Every training step sees adversarial images in place of the clean ones (Madry et al., 2018). The attack uses labels
    and network, and neither changes it nor its gradients. After the step the batch holds its clean images again.
    Attacks call `forward` many times, so metrics must be updated in the steps, not in `forward`.
    Batches are (images, labels) with images (N, C, H, W) in [0, 1]; normalisation belongs into `forward`. Validation
    and test stay clean: add `RobustEval`.

    Args:
        attack: Attack of every training batch, such as PGD.

    Raises:
        TypeError: The module has no `forward`.
        ValueError: Another attack, of the module or of a second callback; wrong images, labels or logits.
    """

    def __init__(self, attack: Attack) -> None:
        self.attack = attack
        self._images: tuple[Tensor, Tensor] | None = None
        self._checked = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the module."""
        classifier_of(pl_module)
        if isinstance(getattr(pl_module, "attack", None), Attack):
            raise ValueError(
                f"AdversarialTraining must be left out for {type(pl_module).__name__}, which already has an attack. "
                "Pass --model.attack instead."
            )
        count = sum(isinstance(callback, AdversarialTraining) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        if count > 1:
            raise ValueError(f"One AdversarialTraining must be passed, got {count}. Combine attacks with WorstOf.")
        self._checked = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Write adversarial images into the batch."""
        x, y = images_and_labels(batch)
        if not self._checked and x.is_floating_point():
            probe(classifier_of(pl_module), x, y)
            self._checked = True
        with trainer.precision_plugin.forward_context():
            adversarial = self.attack(classifier_of(pl_module), x, y)
        # A callback cannot replace a batch, but the memory of its tensor. The old memory can be that of the dataset.
        self._images = x, x.data
        x.data = adversarial

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Write the clean images back."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the clean images back."""
        self._restore()

    def _restore(self) -> None:
        if self._images is not None:
            batch, clean = self._images
            batch.data = clean
            self._images = None
