"""Recompute outputs of activations in the backward pass to save memory."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from lightning_paf.nn.activations import ParametricActivation


@contextmanager
def recomputed_outputs(model: nn.Module) -> Iterator[None]:
    """Let the layers behind a parametric activation keep a recipe for its output instead of the output.

    The derivative of ReLU can be read off its output, which the convolution behind it keeps anyway. Other activations
    need their input: the network keeps both, half as much again. Inside this context what a layer would keep is
    compared with the outputs of the activations; such an output is let go, and computed again from the input when the
    backward pass asks for it, which is one more pass over memory for every layer.

    Nothing else changes. An output that was modified in place before it was kept is left alone, and so is everything
    while no parameter takes a gradient, that is inside an attack: there the memory is not the largest of the step.

    Args:
        model: The network whose forward pass follows; its backward pass may come after the context.
    """
    outputs: dict[int, _Output] = {}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad][:1]

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if output.requires_grad and any(parameter.requires_grad for parameter in trainable):
            outputs[output.data_ptr()] = _Output(module, inputs[0].detach(), weakref.ref(output), output._version)

    def pack(saved: Tensor) -> "Tensor | _Output":
        found = outputs.get(saved.data_ptr())
        return found if found is not None and found.is_still(saved) else saved

    def unpack(kept: "Tensor | _Output") -> Tensor:
        return kept if isinstance(kept, Tensor) else kept.again()

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, ParametricActivation):
                handle = module.register_forward_hook(note)
                stack.callback(handle.remove)
        stack.enter_context(saved_tensors_hooks(pack, unpack))
        yield


@dataclass(frozen=True)
class _Output:
    """How to compute the output of an activation again."""

    activation: Callable[[Tensor], Tensor]
    x: Tensor
    output: weakref.ref[Tensor]
    version: int

    def is_still(self, saved: Tensor) -> bool:
        """Whether `saved` is the output, as the activation returned it, and not another tensor at its old address."""
        output = self.output()
        return (
            output is not None
            and output._version == self.version
            and (saved.shape, saved.stride(), saved.dtype) == (output.shape, output.stride(), output.dtype)
        )

    def again(self) -> Tensor:
        with torch.no_grad():
            return self.activation(self.x)
