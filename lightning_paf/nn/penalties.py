"""Layers that add a term to the training loss."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class Penalised(Protocol):
    """A layer with a term of its own in the training loss (PSSiLU's beta, the stability terms of neural ODEs)."""

    def penalty(self) -> Tensor:
        """The term, a scalar that is already weighted."""


def total_penalty(model: nn.Module) -> Tensor:
    """Sum the penalties of all layers below `model`.

    A layer that is shared by many places counts once: the paper's activation is one object for the whole network.

    Args:
        model: Any module.

    Returns:
        Scalar tensor; a zero on the CPU where no layer is penalised.
    """
    terms = [layer.penalty() for layer in model.modules() if isinstance(layer, Penalised)]
    # A plain sum: layers without a penalty answer with a scalar on the CPU, which may meet scalars of any device.
    return sum((term.reshape(()) for term in terms), torch.zeros(()))
