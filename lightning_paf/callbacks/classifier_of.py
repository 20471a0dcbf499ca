"""The classifier inside any LightningModule."""

from lightning.pytorch import LightningModule
from torch import nn

from lightning_paf.nn.classifier import Classifier


def classifier_of(module: LightningModule) -> nn.Module:
    """Network from images (N, C, H, W) in [0, 1] to logits (N, classes).

    That is the module itself, which must define `forward`. Tasks of this package have a `Classifier` as their `model`,
    which evaluations run without the module around it.

    Raises:
        TypeError: The module does not define `forward`; a network inside it need not return logits.
    """
    model = getattr(module, "model", None)
    if isinstance(model, Classifier):
        return model
    if type(module).forward is LightningModule.forward:
        raise TypeError(
            f"{type(module).__name__}.forward must map images (N, C, H, W) in [0, 1] to logits, got no forward. "
            "Define it, as in `return self.model(x)`."
        )
    return module
