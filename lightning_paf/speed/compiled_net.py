"""Substitute for a network, compiled by torch.compile."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_paf.nn.equivalence import difference
from lightning_paf.nn.modes import buffers_kept
from lightning_paf.types import Forward

log = logging.getLogger(__name__)


class CompiledNet:
    """Calls a network through `torch.compile`.

    It is not a module, so neither in the state dict nor in a copy.

    The first call of each kind (without gradients, with them for the images, the weights, or both) checks that the
    compiled code computes the same function (see `equivalence.difference`). If not, as for a network with dropout,
    the network itself is called, and a warning is logged.

    Args:
        net: Network to compile at its first call, for inputs of one shape.
        _backend: Backend of `torch.compile`.
    """

    def __init__(self, net: nn.Module, *, _backend: str = "inductor") -> None:
        def call(x: Tensor) -> Tensor:
            output: Tensor = net(x)
            return output

        self._net = net
        self._compiled: Forward = torch.compile(call, dynamic=False, backend=_backend)
        self._chosen: dict[tuple[bool, bool, bool], Forward] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """Return the output of the network."""
        weights = [parameter for parameter in self._net.parameters() if parameter.requires_grad]
        kind = torch.is_grad_enabled(), x.requires_grad, bool(weights)
        if kind not in self._chosen:
            self._chosen[kind] = self._checked(x, weights)
        output: Tensor = self._chosen[kind](x)
        return output

    def _checked(self, x: Tensor, weights: Sequence[Tensor]) -> Forward:
        with buffers_kept(self._net):
            reason = difference(self._net, self._compiled, x, weights, gradients=torch.is_grad_enabled())
        if reason is None:
            return self._compiled
        log.warning(
            "%s is not compiled: %s. The network itself is used. Pass --model.speed.compile false to disable this "
            "warning.",
            type(self._net).__name__,
            reason,
        )
        return self._net

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        # A copied network has other weights than the compiled ones.
        return type(None), ()
