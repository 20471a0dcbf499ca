"""Context managers that change modes, buffers or precision temporarily."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch
from torch import nn

from lightning_paf.nn.sync_batch_norm import CpuSyncBatchNorm

Mode = Literal["eval", "train"]
"""Mode of the attacked model: `eval` or `train`.

`eval`: running statistics, no dropout. `train`: batch statistics, dropout.
"""


@contextmanager
def frozen(model: nn.Module, mode: Mode = "eval") -> Iterator[None]:
    """Freeze `model` inside a `with` block, for attacks.

    Inside, all modules are in `mode` and no parameter requires a gradient, which saves memory and keeps `.grad`
    unchanged. On exit, even after an exception, each module's training flag and each parameter's `requires_grad` is
    restored individually: a part that the caller keeps in eval mode stays in eval mode.

    In mode `train`, forward passes work on copies of the buffers: batch normalisation uses the statistics of the batch,
    but its running statistics (and any other buffer) keep their values. The statistics are never synchronised with
    other ranks, which can make fewer passes.

    Args:
        model: Model with its submodules.
        mode: `eval` or `train`.

    Raises:
        ValueError: Unknown mode, or `model` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be an nn.Module, got {type(model).__name__}. Wrap it in a module.")
    if mode not in ("eval", "train"):
        raise ValueError(f"mode must be eval or train, got {mode!r}. Pass eval unless the method requires train.")
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
    """Run forward passes on copies of the buffers, and restore them on exit.

    Args:
        model: Model with its submodules.
        alone: Do not synchronise batch statistics with other ranks, for passes that they possibly do not make.
    """
    # Exchanged, not overwritten and written back: a write would invalidate the graph of an earlier forward pass (TRADES
    # keeps one during the attack), which autograd reports as an in-place modification.
    buffers = [(module, module.training, dict(module._buffers)) for module in model.modules()]
    try:
        for module, _, originals in buffers:
            module._buffers.update({k: b.clone() for k, b in originals.items() if b is not None})
            if alone and isinstance(module, nn.SyncBatchNorm | CpuSyncBatchNorm):
                # In eval mode they do not synchronise; without running statistics they still use those of the batch.
                module.training = False
                module._buffers.update(running_mean=None, running_var=None)
        yield
    finally:
        for module, training, originals in buffers:
            module.training = training
            module._buffers.update(originals)


@contextmanager
def full_precision() -> Iterator[None]:
    """Disable TF32 in convolutions.

    TF32 is the default on CUDA, and has the rounding error of half precision.
    """
    convolution = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # torch declares it by assignment only
    before = convolution.fp32_precision
    convolution.fp32_precision = "ieee"
    try:
        yield
    finally:
        convolution.fp32_precision = before
