"""Equivalence check of a model and a faster substitute.

It covers gradients and the use of random generators.
"""

import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_paf.types import Forward

_NOISE = (0.05, 0.5)  # fractions of the range of the images: near them, as in an attack, and far from them
_TOLERANCES = {"outputs": 1e-2, "gradients by the weights": 0.05, "gradients": 0.05}
"""Tolerances relative to the norms, in single precision.

Rounding causes 1e-6 to 1e-3, and more where it switches ReLUs.
"""
_AUTOCAST_TOLERANCES = {"outputs": 0.1, "gradients by the weights": 0.5, "gradients": 0.5}
"""Tolerances under autocast, which rounds in every layer.

A lost or replaced gradient differs by more.
"""

_State = tuple[Callable[[], Any], Callable[[Any], object]]


def difference(
    model: nn.Module, substitute: Forward, x: Tensor, parameters: Sequence[Tensor] = (), gradients: bool = True
) -> str | None:
    """Compare outputs, gradients and random generators of model and substitute.

    Images are noisy, so that flat regions (ties of max-pooling) and saturated units neither hide nor cause a
    difference. Gradients are for random cotangents. No random generator may be used, since one pass of a random
    network does not predict the next. Modes and precision are those of the caller; under autocast the tolerance is
    wider. All generators are restored.

    Args:
        model: Images to outputs.
        substitute: Replacement of the model's call.
        x: Images (N, C, H, W), at least one. Both functions process twice as many.
        parameters: Tensors to differentiate by instead of the images, or in addition if these require a gradient.
        gradients: False compares passes without gradients.

    Returns:
        The reason not to use the substitute, for a log line; None if they agree.
    """
    autocast = torch.is_autocast_enabled(x.device.type)
    tolerances = _AUTOCAST_TOLERANCES if autocast else _TOLERANCES
    with torch.inference_mode(False), torch.set_grad_enabled(gradients), generators_kept(model, x.device) as used:
        try:
            for seed, noise in enumerate(_NOISE):
                probes = _noisy(x, noise, seed).requires_grad_(gradients and (x.requires_grad or not parameters))
                expected, found = (_results(forward, probes, parameters, seed) for forward in (model, substitute))
                if used():
                    return "its forward pass uses a random generator"
                for name, tolerance in tolerances.items():
                    if not _near(found[name], expected[name], tolerance):
                        return f"its {name} differ, or are not finite"
        except Exception as error:  # a network can raise anything
            return summary(error)
    return None


@contextmanager
def generators_kept(model: nn.Module, *devices: torch.device) -> Iterator[Callable[[], bool]]:
    """Restore the state of all random generators on exit.

    These are the generators of Python, NumPy and torch, and those among the attributes of modules.

    Args:
        model: Its modules can hold generators; its devices are included.
        devices: Further devices.

    Yields:
        A function that returns whether any generator has been used inside.
    """
    all_devices = {*devices, *(tensor.device for tensor in (*model.parameters(), *model.buffers()))}
    states = [*_global_states(all_devices), *_held_states(model)]
    before = [(get(), put) for get, put in states]
    unused = [_bytes(state) for state, _ in before]
    try:
        yield lambda: [_bytes(get()) for get, _ in states] != unused
    finally:
        for state, put in before:
            put(state)


@dataclass(frozen=True)
class Observer:
    """A forward hook that reads inputs and output, and changes nothing.

    Args:
        note: Called with the module, its inputs and its output.
    """

    note: Callable[[nn.Module, tuple[Any, ...], Tensor], None]

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Pass the call on; no return value leaves the output as it is."""
        self.note(module, inputs, output)


def is_hooked(module: nn.Module) -> bool:
    """Return whether a call of the module runs hooks other than an `Observer`."""
    hooks = (hook for name in _HOOKS for hook in getattr(module, name).values())
    return any(not isinstance(hook, Observer) for hook in hooks)


def has_global_hooks() -> bool:
    """Return whether global module hooks are registered.

    See `torch.nn.modules.module.register_module_forward_hook`.
    """
    return any(getattr(nn.modules.module, f"_global{hooks}") for hooks in _HOOKS)


def summary(error: Exception) -> str:
    """Return the first line of an error as part of a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _global_states(devices: set[torch.device]) -> list[_State]:
    cuda = sorted((device for device in devices if device.type == "cuda"), key=str)
    return [
        (random.getstate, random.setstate),
        (np.random.get_state, np.random.set_state),
        (torch.get_rng_state, torch.set_rng_state),
        *((partial(torch.cuda.get_rng_state, d), partial(torch.cuda.set_rng_state, device=d)) for d in cuda),
    ]


def _held_states(model: nn.Module) -> list[_State]:
    """Generators among the attributes of modules."""
    held: dict[int, _State] = {}  # by identity, since modules can share one
    for value in (value for module in model.modules() for value in vars(module).values()):
        if isinstance(value, random.Random):
            held[id(value)] = value.getstate, value.setstate
        elif isinstance(value, np.random.RandomState | torch.Generator):
            held[id(value)] = value.get_state, value.set_state
        elif isinstance(value, np.random.Generator):
            bits = value.bit_generator
            held[id(value)] = partial(getattr, bits, "state"), partial(setattr, bits, "state")
    return list(held.values())


def _bytes(state: Any) -> bytes:
    return pickle.dumps(state.numpy() if isinstance(state, Tensor) else state)


def _noisy(x: Tensor, fraction: float, seed: int) -> Tensor:
    """Interpolate between images and uniform noise, within their range."""
    x = x.detach().clone()
    low, high = (limit.item() for limit in x.aminmax())
    generator = torch.Generator(x.device).manual_seed(seed)
    noise = torch.empty_like(x).uniform_(min(low, 0.0), max(high, 1.0), generator=generator)
    return x.lerp_(noise, fraction)


def _results(forward: Forward, x: Tensor, parameters: Sequence[Tensor], seed: int) -> dict[str, Tensor]:
    """Output, and gradients for a random cotangent, by the names of `_TOLERANCES`.

    A missing gradient is zero.
    """
    output = forward(x)
    generator = torch.Generator(output.device).manual_seed(seed)
    cotangent = torch.empty_like(output, requires_grad=False).normal_(generator=generator)
    inputs = [*parameters, *([x] if x.requires_grad else [])]
    gradients: Sequence[Tensor] = [torch.zeros_like(tensor) for tensor in inputs]
    if output.requires_grad:
        gradients = torch.autograd.grad(output, inputs, cotangent, materialize_grads=True)
    vectors = [gradient.flatten() for gradient in gradients]
    by_parameters, by_images = vectors[: len(parameters)], vectors[len(parameters) :]
    empty = output.new_empty(0)
    return {
        "outputs": output.detach(),
        "gradients by the weights": torch.cat([empty, *by_parameters]),
        "gradients": torch.cat([empty, *by_images]),
    }


def _near(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    if found.shape != expected.shape:
        return False
    found, expected = found.float(), expected.float()
    return bool((found - expected).norm() <= tolerance * expected.norm())
