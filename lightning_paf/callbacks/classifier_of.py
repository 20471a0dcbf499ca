"""The classifier inside any LightningModule."""

from lightning.pytorch import LightningModule
from torch import nn

from lightning_paf.nn.classifier import Classifier


def classifier_of(module: LightningModule) -> nn.Module:
    """Network from images (N, C, H, W) in [0, 1] to logits (N, classes).

    That is the module itself where it defines `forward`, else its `model`. Tasks of this package have a `Classifier` as
    their `model`, which evaluations run without the module around it.

    Raises:
        TypeError: The module has neither `forward` nor a network `model`.
    """
    model = getattr(module, "model", None)
    if not isinstance(model, Classifier) and type(module).forward is not LightningModule.forward:
        return module
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{type(module).__name__}.forward must map images (N, C, H, W) in [0, 1] to logits, got no forward. "
            "Define it, or assign the network to `self.model`."
        )
    return model
