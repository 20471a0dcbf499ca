"""The check that a faster substitute computes the same function as a model, gradients and random choices included."""

import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_paf.types import Forward

_NOISE = (0.05, 0.5)  # of the range of the images: near them, as an attack searches, and anywhere
_TOLERANCES = {"outputs": 1e-2, "gradients by the weights": 0.05, "gradients": 0.05}
"""Of the norms. In single precision rounding takes 1e-6 to 1e-3, more where it switches units of ReLU on and off."""
_AUTOCAST_TOLERANCES = {"outputs": 0.1, "gradients by the weights": 0.5, "gradients": 0.5}
"""The same in half precision, which rounds in every layer; a gradient that is lost or replaced differs by more."""

_State = tuple[Callable[[], Any], Callable[[Any], object]]


def difference(
    model: nn.Module, substitute: Forward, x: Tensor, parameters: Sequence[Tensor] = (), gradients: bool = True
) -> str | None:
    """Compare a substitute with a model: outputs, gradients, and the states of all random generators.

    Both compute noisy images, so that neither flat regions (ties of max-pooling) nor saturated units hide or feign a
    difference, and gradients for random cotangents. Both must leave every random generator as found: one pass of a
    random network shows nothing about the next. Modes and precision are those of the caller; under autocast the
    tolerance is wider. The generators are left as found.

    Args:
        model: Images to outputs.
        substitute: What is to replace its call.
        x: Images (N, C, H, W), at least one. Both compute twice as many.
        parameters: What to differentiate by, instead of the images; with them where these require a gradient.
        gradients: False compares passes without gradients, for a substitute that serves these alone.

    Returns:
        Why the substitute must not be used, for a log line; None where it may.
    """
    autocast = torch.is_autocast_enabled(x.device.type)
    tolerances = _AUTOCAST_TOLERANCES if autocast else _TOLERANCES
    with torch.inference_mode(False), torch.set_grad_enabled(gradients), generators_kept(model, x.device) as used:
        try:
            for seed, noise in enumerate(_NOISE):
                probes = _noisy(x, noise, seed).requires_grad_(gradients and (x.requires_grad or not parameters))
                expected, found = (_answer(forward, probes, parameters, seed) for forward in (model, substitute))
                if used():
                    return "its forward pass uses a random generator"
                for what, tolerance in tolerances.items():
                    if not _near(found[what], expected[what], tolerance):
                        return f"its {what} differ, or are not finite"
        except Exception as error:  # both run code of the network, which may fail in any way
            return summary(error)
    return None


@contextmanager
def generators_kept(model: nn.Module, *devices: torch.device) -> Iterator[Callable[[], bool]]:
    """Restore all random generators on leaving: those of python, numpy and torch, and those that modules hold.

    Args:
        model: Whose modules may hold generators, and on whose devices it may draw.
        devices: Further devices.

    Yields:
        A function that returns whether any generator has been used inside.
    """
    places = {*devices, *(tensor.device for tensor in (*model.parameters(), *model.buffers()))}
    states = [*_global_states(places), *_held_states(model)]
    before = [(get(), put) for get, put in states]
    unused = [_bytes(state) for state, _ in before]
    try:
        yield lambda: [_bytes(get()) for get, _ in states] != unused
    finally:
        for state, put in before:
            put(state)


def is_hooked(module: nn.Module) -> bool:
    """Whether a call of the module runs hooks."""
    return any(getattr(module, hooks) for hooks in _HOOKS)


def has_global_hooks() -> bool:
    """Whether the call of every module runs hooks (`register_module_forward_hook` and its kin)."""
    return any(getattr(nn.modules.module, f"_global{hooks}") for hooks in _HOOKS)


def summary(error: Exception) -> str:
    """The first line of an error, as a part of a sentence."""
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
    held: dict[int, _State] = {}  # by identity: several modules may hold one
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
    """Equal for equal states."""
    return pickle.dumps(state.numpy() if isinstance(state, Tensor) else state)


def _noisy(x: Tensor, share: float, seed: int) -> Tensor:
    """Images moved by a share of the way to uniform noise, within their range and in their layout."""
    x = x.detach().clone()
    low, high = (limit.item() for limit in x.aminmax())
    generator = torch.Generator(x.device).manual_seed(seed)
    noise = torch.empty_like(x).uniform_(min(low, 0.0), max(high, 1.0), generator=generator)
    return x.lerp_(noise, share)


def _answer(forward: Forward, x: Tensor, parameters: Sequence[Tensor], seed: int) -> dict[str, Tensor]:
    """The output, and its gradients for a random cotangent, zero where none arrives; by the names of `_TOLERANCES`."""
    output = forward(x)
    generator = torch.Generator(output.device).manual_seed(seed)
    cotangent = torch.empty_like(output, requires_grad=False).normal_(generator=generator)
    wanted = [*parameters, *([x] if x.requires_grad else [])]
    gradients: Sequence[Tensor | None] = [None] * len(wanted)
    if output.requires_grad:
        gradients = torch.autograd.grad(output, wanted, cotangent, allow_unused=True)
    vectors = [(torch.zeros_like(w) if g is None else g).flatten() for g, w in zip(gradients, wanted, strict=True)]
    by_parameters, by_images = vectors[: len(parameters)], vectors[len(parameters) :]
    empty = output.new_empty(0)
    return {
        "outputs": output.detach(),
        "gradients by the weights": torch.cat([empty, *by_parameters]),
        "gradients": torch.cat([empty, *by_images]),
    }


def _near(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether tensors are finite and agree up to a share of the norm."""
    if found.shape != expected.shape:
        return False
    found, expected = found.float(), expected.float()
    return bool((found - expected).norm() <= tolerance * expected.norm())
