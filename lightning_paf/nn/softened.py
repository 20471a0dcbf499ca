"""Networks with softened activations, whose gradients lead off plateaus."""

import copy
import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from lightning_paf.nn.activations import Activation
from lightning_paf.nn.swap import target_paths

_LAYERS = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Softplus, nn.Tanh, nn.Sigmoid, Activation)
_FUNCTIONS = {F.relu, F.leaky_relu, F.elu, F.silu, F.gelu, F.softplus, torch.relu, torch.tanh, torch.sigmoid}
_SHIFTS = tuple(math.log(share / (1 - share)) for share in (1 / 6, 1 / 2, 5 / 6))


class SoftenedModel(nn.Module):
    """A network whose activation functions are averaged over shifts of their inputs.

    Units that are off pass no gradient, or hardly any. The average over a neighbourhood does. Each activation f becomes
    the mean of f(x + w q) over three quantiles q of the logistic distribution. Over all quantiles, ReLU would become
    the Softplus w log(1 + exp(x / w)). The width w is a multiple of the root mean square of the inputs of that layer
    for one image, so that it follows the scale of the weights. At width 0 the logits are those of the network.

    Activations are modules, and in a graph of `torch.fx` also the usual functions. Others are unchanged.

    Args:
        model: Images (N, C, H, W) to logits (N, K); not modified. A graph is copied with the same layers, another
            network with all weights.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = _graph_copy(model) if isinstance(model, fx.GraphModule) else copy.deepcopy(model)
        self.model.eval().requires_grad_(False)
        self._softness = torch.zeros(1)
        for path in target_paths(self.model, (*_LAYERS, _Function)):
            softened = _Softened(self.model.get_submodule(path), lambda: self._softness)
            self.model.set_submodule(path, softened)

    def forward(self, x: Tensor, softness: Tensor) -> Tensor:
        """Compute logits (N, K).

        Args:
            x: Images (N, C, H, W).
            softness: Width for each image, in root mean squares, (N,).
        """
        self._softness = softness
        logits: Tensor = self.model(x)
        return logits


class _Softened(nn.Module):
    """An activation averaged over shifts of its input."""

    def __init__(self, activation: nn.Module, softness: Callable[[], Tensor]) -> None:
        super().__init__()
        self.activation, self.softness = activation, softness

    def forward(self, x: Tensor) -> Tensor:
        softness = self.softness()
        if len(softness) != len(x):  # a layer that merges images or splits them
            softness = softness.mean()
        size = x.detach().reshape(len(x), -1).float().square().mean(1).sqrt()
        width = (softness * size).to(x.dtype).view(-1, *[1] * (x.ndim - 1))
        mean: Tensor = sum(self.activation(x + shift * width) for shift in _SHIFTS) / len(_SHIFTS)
        return mean


class _Function(nn.Module):
    """A function of one tensor as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _graph_copy(net: fx.GraphModule) -> fx.GraphModule:
    """A graph with the same layers, and layers in place of activation functions."""
    copied = fx.GraphModule(net, copy.deepcopy(net.graph))
    for node in copied.graph.nodes:
        if node.op == "call_function" and node.target in _FUNCTIONS and node.args[1:] == ():
            name = f"activation_{node.name}"
            copied.add_module(name, _Function(partial(node.target, **node.kwargs)))
            node.op, node.target, node.kwargs = "call_module", name, {}
    copied.recompile()
    return copied
