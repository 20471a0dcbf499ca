"""Recomputation of activations in the backward pass, to save memory."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from lightning_paf.nn.activations import ParametricActivation
from lightning_paf.nn.equivalence import Observer, is_hooked


@contextmanager
def recomputed_outputs(model: nn.Module) -> Iterator[None]:
    """Save inputs of parametric activations instead of outputs for backward.

    ReLU's derivative follows from its output, which the next convolution saves anyway. Other activations also save
    their input, half as much memory again. In this context, an output that a layer would save is released, and
    recomputed from the input in the backward pass, at the cost of one more pass over memory per layer.

    Outputs that were modified in place are saved as usual. So is everything while no parameter requires a gradient, as
    in an attack, which does not reach the peak memory of the step.

    Args:
        model: Network of the forward passes in the context; its backward passes can follow later.
    """
    outputs: dict[int, _Output] = {}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad][:1]

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if output.requires_grad and any(parameter.requires_grad for parameter in trainable):
            outputs[output.data_ptr()] = _Output(module, inputs[0].detach(), weakref.ref(output), output._version)

    def pack(saved: Tensor) -> "Tensor | _Output":
        found = outputs.get(saved.data_ptr())
        return found if found is not None and found.matches(saved) else saved

    def unpack(kept: "Tensor | _Output") -> Tensor:
        return kept if isinstance(kept, Tensor) else kept.recomputed()

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, ParametricActivation) and not is_hooked(module):  # hooks would run twice
                stack.enter_context(module.register_forward_hook(Observer(note)))
        stack.enter_context(saved_tensors_hooks(pack, unpack))
        yield


@dataclass(frozen=True)
class _Output:
    """An output of an activation, with the input that it can be recomputed from."""

    activation: Callable[[Tensor], Tensor]
    x: Tensor
    output: weakref.ref[Tensor]
    version: int

    def matches(self, saved: Tensor) -> bool:
        """Whether `saved` is the unmodified output.

        A later tensor can have the same address.
        """
        output = self.output()
        return (
            output is not None
            and output._version == self.version
            and (saved.shape, saved.stride(), saved.dtype) == (output.shape, output.stride(), output.dtype)
        )

    def recomputed(self) -> Tensor:
        with torch.no_grad():
            return self.activation(self.x)
