"""Context managers that change modes, buffers or precision and restore them."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch
from torch import nn

from lightning_paf.nn.sync_batch_norm import CpuSyncBatchNorm

Mode = Literal["eval", "train"]
"""How the attacked model behaves: `eval` (running statistics, no dropout) or `train` (batch statistics, dropout)."""


@contextmanager
def frozen(model: nn.Module, mode: Mode = "eval") -> Iterator[None]:
    """Fix `model` for the length of a `with` block, as an attack needs it.

    Inside, every module is in `mode` and no parameter requires a gradient (which saves the memory of weight gradients
    and lets none reach `.grad`). On leaving, normally or by an exception, each module's training flag and each
    parameter's `requires_grad` is what it was, module by module: a part that the caller keeps in eval mode stays so.

    In mode `train` the forward passes work on copies of the buffers: batch normalisation uses the statistics of the
    batch, but its running statistics (and any other buffer) keep their values. The batch is that of this rank alone:
    where ranks share their statistics, the attack asks none of the others, which may be about to make fewer passes.

    Args:
        model: What to freeze, with all its submodules.
        mode: `eval` or `train`.

    Raises:
        ValueError: Unknown mode.
    """
    if mode not in ("eval", "train"):
        raise ValueError(f"mode must be eval or train, but is {mode!r}. Use eval unless the method asks for train.")
    flags = [(module, module.training) for module in model.modules()]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.train(mode == "train")
        for parameter in trainable:
            parameter.requires_grad_(False)
        with buffers_kept(model) if mode == "train" else nullcontext():
            yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module, training in flags:
            module.training = training


@contextmanager
def buffers_kept(model: nn.Module, alone: bool = True) -> Iterator[None]:
    """Let forward passes work on copies of the buffers of `model`; on leaving, the buffers are what they were.

    Args:
        model: Whose buffers, with all its submodules.
        alone: Where ranks share the statistics of a batch, use those of this rank, for passes that others may not make.
    """
    # They are exchanged, not overwritten and written back: a write would invalidate the graph of an earlier
    # forward pass (TRADES keeps one over the attack), which autograd reports as a modification in place.
    buffers = [(module, module.training, dict(module._buffers)) for module in model.modules()]
    try:
        for module, _, originals in buffers:
            module._buffers.update({k: b.clone() for k, b in originals.items() if b is not None})
            if alone and isinstance(module, nn.SyncBatchNorm | CpuSyncBatchNorm):
                # In eval mode they ask nobody; without running statistics they use those of the batch all the same.
                module.training = False
                module._buffers.update(running_mean=None, running_var=None)
        yield
    finally:
        for module, training, originals in buffers:
            module.training = training
            module._buffers.update(originals)


@contextmanager
def full_precision() -> Iterator[None]:
    """Without TF32, in which CUDA devices convolve unless told otherwise: its error is that of half precision."""
    convolution = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # torch declares it by assignment only
    before = convolution.fp32_precision
    convolution.fp32_precision = "ieee"
    try:
        yield
    finally:
        convolution.fp32_precision = before
