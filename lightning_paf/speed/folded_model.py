"""A cheaper equivalent of a network whose weights change, for the attacks of adversarial training."""

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

_PROBES = 8  # images that show whether the folded model computes the same function

log = logging.getLogger(__name__)


class FoldedModel:
    """Computes a model in eval mode by a faster path that follows its weights.

    Each BatchNorm is folded into the convolution before it, and the weights of convolutions and linear layers are held
    in the dtype that autocast computes in, which otherwise casts them in every pass. Everything else is the model's
    own, so parameters of activations need no refresh. The copy costs the memory of the weights once more, in that
    dtype; its addresses do not change between refreshes.

    The graph is built at the first call of what the first `refresh` returns; these images show whether it computes the
    same function (see `equivalence.difference`). Where a network cannot be traced or its trace differs (random layers,
    control flow that depends on images, hooks on the model, gradients of its own), the model itself is what `refresh`
    returns, and a warning is logged.

    It touches only the model that it is given: no collective operations, nothing in the state dict, and nothing to
    copy or to pickle; a copied or loaded model has None in its place.

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
        """Whether the faster path is in use; known after the first call of what `refresh` returns."""
        return self._folding is not None

    def refresh(self) -> Forward:
        """Bring the weights up to date, without waiting for the device.

        Call it inside `frozen(model)` and the autocast of what follows, before every use after the model has changed.

        Returns:
            What to call with images (N, C, H, W) for logits (N, K), inside the same contexts.
        """
        if self._forward is None:
            return self._first_call
        if self._folding is not None:
            self._folding.refresh()
        return self._forward

    def _first_call(self, x: Tensor) -> Tensor:
        if self._forward is None:
            self._forward = self._fastest(x.detach())
        logits: Tensor = self.refresh()(x)
        return logits

    def _fastest(self, x: Tensor) -> Forward:
        """The folding, compiled where that is wanted, as far as these compute the same function."""
        folding = _checked_folding(self._model, x[:_PROBES])
        if isinstance(folding, str):
            log.warning(
                "%s has no folded copy that computes the same: %s. Attacks in training use the network itself, which "
                "takes longer.",
                _named(self._model),
                folding,
            )
            return self._model
        self._folding = folding
        if not self._compile:
            return folding.net
        folding.refresh()
        compiled: Forward = torch.compile(folding.net, dynamic=False, backend=self._backend)
        reason = difference(self._model, compiled, x)
        if reason is not None:
            log.warning("The compiled copy of %s is not used: %s.", _named(self._model), reason)
        return folding.net if reason else compiled

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        # For copy and pickle, both. A copy of the model (an average of weights, a worker's) has other weights: it
        # makes another folded model or none.
        return type(None), ()


def _named(model: nn.Module) -> str:
    """The class of a model, or of the network in it."""
    return type(getattr(model, "net", model)).__name__


def _checked_folding(model: nn.Module, x: Tensor) -> Folding | str:
    """A folding that computes what the model computes, or why there is none."""
    try:
        folding = Folding(model)
        return _difference(model, folding, x) or folding
    except Exception as error:  # tracing runs code of the network, which may fail in any way
        return summary(error)


def _difference(model: nn.Module, folding: Folding, x: Tensor) -> str | None:
    """Why the folding is none of the model, in single precision and at weights that hide nothing.

    The present weights may: residual branches that are initialised to zero, or a head that is, make networks equal
    that are not.
    """
    with torch.autocast(x.device.type, enabled=False), full_precision(), _revealing_weights(model):
        folding.refresh()
        # Not the call of the graph, which prints errors.
        return difference(model, folding.net.forward, x.to(_wide(x)))


@contextmanager
def _revealing_weights(model: nn.Module) -> Iterator[None]:
    """Exchange all tensors of the model for noisy ones; on leaving, each is back, the object as well as its values."""
    originals = [(module, dict(module._parameters), dict(module._buffers)) for module in model.modules()]
    noisy: dict[int, Any] = {}
    for seed, tensor in enumerate([*model.parameters(), *model.buffers()]):
        noisy[id(tensor)] = _noisy(tensor, seed)
    try:
        for module, parameters, buffers in originals:
            for own, held in ((module._parameters, parameters), (module._buffers, buffers)):
                own.update({name: noisy[id(tensor)] for name, tensor in held.items() if tensor is not None})
        yield
    finally:
        for module, parameters, buffers in originals:
            module._parameters.update(parameters)
            module._buffers.update(buffers)


def _noisy(tensor: Tensor, seed: int) -> Tensor:
    """A copy in at least single precision: scales, shifts and statistics grow, weights vary, constants stay."""
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
