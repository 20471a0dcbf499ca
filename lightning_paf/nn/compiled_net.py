"""A network that torch.compile has compiled, beside the network itself."""

import torch
from torch import Tensor, nn


class CompiledNet:
    """Calls a network through `torch.compile`, without being a module: not in the state dict, and not in a copy.

    Args:
        net: What to compile, at its first call; for inputs of one shape.
    """

    def __init__(self, net: nn.Module) -> None:
        def call(x: Tensor) -> Tensor:
            output: Tensor = net(x)
            return output

        self._call = torch.compile(call, dynamic=False)

    def __call__(self, x: Tensor) -> Tensor:
        """The output of the network."""
        output: Tensor = self._call(x)
        return output

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        # A copied network has other weights than those that were compiled in.
        return type(None), ()
