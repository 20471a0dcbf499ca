"""Faster equivalent of a model for attacks in adversarial training."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_paf.nn.equivalence import difference, summary
from lightning_paf.nn.modes import full_precision
from lightning_paf.speed.folding import Folding
from lightning_paf.types import Forward

_PROBES = 8  # images of the equivalence check

log = logging.getLogger(__name__)


class FoldedModel:
    """Fast eval-mode equivalent of a model, refreshed from its weights.

    Each BatchNorm is folded into the preceding convolution. The weights of convolutions and linear layers are stored in
    the dtype of autocast, which otherwise casts them in every pass. They need additional memory, and keep their
    addresses between refreshes. All other parameters are shared with the model.

    The graph is built in the first forward pass, whose images also serve to check that it computes the same function
    (see `equivalence.difference`). If a network cannot be traced or its trace differs (random layers, control flow that
    depends on images, hooks, custom gradients), the model itself is used, and a warning is logged.

    It runs no collective operations and is not part of the state dict. Copying or pickling replaces it by None.

    Args:
        model: Images (N, C, H, W) to logits (N, K).
        compile: Compile the folded model with `torch.compile`.
    """

    def __init__(self, model: nn.Module, compile: bool = False, *, _backend: str = "inductor") -> None:
        self._model = model
        self._compile = compile
        self._backend = _backend
        self._folding: Folding | None = None
        self._forward: Forward | None = None

    @property
    def folded(self) -> bool:
        """Whether the faster path is in use; defined after the first forward pass."""
        return self._folding is not None

    def refresh(self) -> Forward:
        """Update the weights, without synchronising the device.

        Call it inside `frozen(model)` and the autocast of the forward passes, whenever the model has changed.

        Returns:
            A function from images (N, C, H, W) to logits (N, K), for the same contexts.
        """
        if self._forward is None:
            return self._first_call
        if self._folding is not None:
            self._folding.refresh()
            dtype, forward = next(self._model.parameters()).dtype, self._forward
            if dtype != torch.float32:
                return lambda x: forward(x.to(dtype))
        return self._forward

    def _first_call(self, x: Tensor) -> Tensor:
        if self._forward is None:
            self._forward = self._fastest(x.detach())
        logits: Tensor = self.refresh()(x)
        return logits

    def _fastest(self, x: Tensor) -> Forward:
        """The fastest path that computes the same function."""
        folding, reason = _checked_folding(self._model, x[:_PROBES])
        if folding is None:
            log.warning(
                "%s has no equivalent folded copy: %s. Attacks in training use the network itself, which is slower.",
                _name(self._model),
                reason,
            )
            return self._model
        self._folding = folding
        if not self._compile:
            return folding.net
        folding.refresh()
        compiled: Forward = torch.compile(folding.net, dynamic=False, backend=self._backend)
        reason = difference(self._model, compiled, x)
        if reason is not None:
            log.warning("The compiled copy of %s is not used: %s.", _name(self._model), reason)
        return folding.net if reason else compiled

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        # For copy and pickle: a copied model (for example an average of weights) has other weights.
        return type(None), ()


def _name(model: nn.Module) -> str:
    """Class name of a model, or of its network."""
    return type(getattr(model, "net", model)).__name__


def _checked_folding(model: nn.Module, x: Tensor) -> tuple[Folding | None, str | None]:
    """Return an equivalent folding, or None and the reason why there is none."""
    try:
        folding = Folding(model)
        reason = _difference(model, folding, x)
    except Exception as error:  # a network can raise anything
        return None, summary(error)
    return (folding, None) if reason is None else (None, reason)


def _difference(model: nn.Module, folding: Folding, x: Tensor) -> str | None:
    """Compare in single precision at noisy weights.

    Zero-initialised branches or heads could hide a difference.
    """
    with torch.autocast(x.device.type, enabled=False), full_precision(), _noisy_weights(model):
        folding.refresh()
        # `forward`, since the call of a graph prints errors.
        return difference(model, folding.net.forward, x.to(_wide(next(model.parameters()))))


@contextmanager
def _noisy_weights(model: nn.Module) -> Iterator[None]:
    """Replace the tensors of a model by noisy ones, and restore them on exit."""
    stores: list[dict[str, Any]] = [s for module in model.modules() for s in (module._parameters, module._buffers)]
    originals = [dict(store) for store in stores]
    tensors = enumerate([*model.parameters(), *model.buffers()])
    noisy = {id(tensor): _noisy(tensor, seed) for seed, tensor in tensors}
    try:
        for store in stores:
            store.update({name: noisy[id(tensor)] for name, tensor in store.items() if tensor is not None})
        yield
    finally:
        for store, content in zip(stores, originals, strict=True):
            store.update(content)


def _noisy(tensor: Tensor, seed: int) -> Tensor:
    """Noisy copy in at least float32."""
    if not tensor.is_floating_point():
        return tensor.clone()
    wide = tensor.detach().to(_wide(tensor), copy=True)
    if tensor.dim() > 1 and not isinstance(tensor, nn.Parameter):
        return wide  # a constant, such as the normalisation of images
    generator = torch.Generator(tensor.device).manual_seed(seed)
    noise = torch.rand(tensor.shape, generator=generator, device=tensor.device)
    return wide + (noise if tensor.dim() < 2 else (noise - 0.5) / tensor[0].numel() ** 0.5)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
