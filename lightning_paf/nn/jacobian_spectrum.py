"""Largest singular values of the Jacobians of a network's parts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import vjp
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_paf.nn.activations.base import ParametricActivation
from lightning_paf.nn.modes import frozen
from lightning_paf.nn.residual_chain import ResidualChain


@dataclass(frozen=True)
class Spectrum:
    """Largest singular values sigma of Jacobians at each image.

    A small perturbation of the image grows by at most `embedding` before the first block, by at most the product of
    `blocks` up to the last one, and by at most `head` from there to the logits, in l2 and to first order.

    Attributes:
        embedding: sigma of the map from images in [0, 1] to the input of the first block, (N,).
        blocks: sigma of each block, including its identity path, by name, (N,) each.
        residual: sigma of each block minus the identity, by name, (N,) each; only of blocks that keep the shape.
        branches: sigma of the residual branches of blocks with a method `branches`, as `BLOCK.BRANCH`, (N,) each.
        head: sigma of the map from the output of the last block to the logits, (N,).
    """

    embedding: Tensor
    blocks: dict[str, Tensor]
    residual: dict[str, Tensor]
    branches: dict[str, Tensor]
    head: Tensor

    def log_bounds(self, count: int | None = None) -> dict[str, Tensor]:
        """Natural logarithms of three bounds on the growth in the blocks.

        From the input of the first block to the output of the last one, ascending, (N,) each. `product`: of sigma of
        the blocks. `residual`: of 1 + sigma of the block minus the identity. `exponential`: the exponential of the sum
        of the latter, as for the differential equation. A block that changes the shape has its own sigma in all three.

        Args:
            count: Number of blocks from the first one, at least 1; all by default.
        """
        names = list(self.blocks)[:count]
        own = {name: self.blocks[name].log() for name in names}
        branches = {name: self.residual[name] for name in names if name in self.residual}
        logs = {
            "product": own,
            "residual": own | {name: sigma.log1p() for name, sigma in branches.items()},
            "exponential": own | branches,
        }
        return {name: torch.stack([*values.values()]).sum(0) for name, values in logs.items()}


def spectral_norm(f: Callable[[Tensor], Tensor], x: Tensor, iterations: int = 50, seed: int = 0) -> Tensor:
    """Largest singular value of the Jacobian J of a function at each sample.

    Power iteration on J^T J approaches it from below. After k iterations the error is of the order of the 4 k-th power
    of the ratio of the two largest singular values.

    Args:
        f: Maps (N, ...) to (N, ...), each sample separately; twice differentiable.
        x: Samples (N, ...).
        iterations: Number of products with J and with its transpose, at least 1.
        seed: Seed of the random start.

    Returns:
        Singular values (N,).
    """
    generator = torch.Generator(x.device).manual_seed(seed)
    v = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    y, pull_back, *_ = vjp(f, x)
    # J v as the derivative of u -> J^T u. Unlike `torch.func.jvp`, it runs no forward pass in each iteration, and needs
    # no forward-mode derivatives, which attention and autograd functions lack.
    _, push_forward, *_ = vjp(lambda u: pull_back(u)[0], torch.zeros_like(y))
    sigma = x.new_zeros(len(x))
    for _ in range(iterations):
        v = v / _norms(v).clamp_min(torch.finfo(x.dtype).tiny)
        (pushed,) = push_forward(v)
        sigma = _norms(pushed).flatten()
        (v,) = pull_back(pushed)
    return sigma.detach()


def jacobian_spectrum(
    model: nn.Module,
    x: Tensor,
    iterations: int = 50,
    seed: int = 0,
    progress: Callable[[str], object] = lambda part: None,
) -> Spectrum:
    """Compute the largest singular values of embedding, blocks and head.

    They are those at the states of the forward passes of images, in eval mode, of any residual network. The model is
    left unchanged.

    Args:
        model: Images (N, C, H, W) in [0, 1] to logits.
        x: Images (N, C, H, W).
        iterations: See `spectral_norm`.
        seed: See `spectral_norm`.
        progress: Called with the name of each part before its computation.

    Raises:
        ValueError: The network has no residual blocks, or `iterations` is below 1.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}. Pass 50.")
    chain = ResidualChain(model, x)
    blocks, residual, branches = dict[str, Tensor](), dict[str, Tensor](), dict[str, Tensor]()

    def sigma(f: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
        return spectral_norm(f, z, iterations, seed)

    with frozen(model), differentiable(model), torch.enable_grad():
        states = [state.detach() for state in chain.states(x)]
        for (path, block), (z, after) in zip(chain.blocks.items(), pairwise(states), strict=True):
            name = path.removeprefix("net.")
            progress(name)
            blocks[name] = sigma(block, z)
            if z.shape == after.shape:
                residual[name] = sigma(partial(_without_identity, block), z)
            branches |= _of_branches(name, block, z, sigma)
        progress("embedding and head")
        embedding, head = sigma(chain.embed, x), sigma(lambda z: chain.head(z, x), states[-1])
    return Spectrum(embedding, blocks, residual, branches, head)


@contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """Replace fused operations by twice differentiable ones inside a `with` block."""
    fused = [layer for layer in model.modules() if isinstance(layer, ParametricActivation) and layer.fused]
    try:
        for layer in fused:
            layer.fused = False
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for layer in fused:
            layer.fused = True


def _without_identity(block: nn.Module, z: Tensor) -> Tensor:
    residual: Tensor = block(z) - z
    return residual


def _of_branches(name: str, block: nn.Module, z: Tensor, sigma: Callable[..., Tensor]) -> dict[str, Tensor]:
    found = {}
    for branch, f in getattr(block, "branches", dict)().items():
        found[f"{name}.{branch}"] = sigma(f, z)
        z = (z + f(z)).detach()
    return found


def _norms(x: Tensor) -> Tensor:
    """l2 norm of each sample, which broadcasts against (N, ...)."""
    norms: Tensor = x.flatten(1).norm(dim=1)
    return norms.view(-1, *[1] * (x.ndim - 1))
