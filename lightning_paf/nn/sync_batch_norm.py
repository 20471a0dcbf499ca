"""Synchronised batch normalisation on CPUs; torch implements it for GPUs only."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function


class CpuSyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """`torch.nn.SyncBatchNorm` for CPUs, made by `share_statistics`.

    In train mode every pass is a collective operation, forward and backward; in eval mode there is none.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N, C, ...)."""
        if not self.training or not torch.distributed.is_initialized():
            return super().forward(input)
        normalised: Tensor = torch.compiler.disable(self._normalised)(input)  # type: ignore[no-untyped-call]
        return normalised

    def _normalised(self, input: Tensor) -> Tensor:
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        others = [dim for dim in range(x.dim()) if dim != 1]
        shape = (1, -1, *[1] * (x.dim() - 2))
        sums = _over_ranks(torch.cat([x.sum(others), x.new_tensor([x.numel() // x.shape[1]])]))
        count = float(sums[-1].detach())
        mean = sums[:-1] / count
        centered = x - mean.view(shape)
        variance = _over_ranks(centered.square().sum(others)) / count
        self._remember(mean.detach(), variance.detach() * (count / max(count - 1, 1)))
        y = centered * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        factor = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), factor)
        self.running_var.lerp_(variance.to(self.running_var), factor)


class CpuSyncBatchNorm1d(CpuSyncBatchNorm, nn.BatchNorm1d):
    """Of (N, C) or (N, C, L)."""


class CpuSyncBatchNorm2d(CpuSyncBatchNorm, nn.BatchNorm2d):
    """Of (N, C, H, W)."""


class CpuSyncBatchNorm3d(CpuSyncBatchNorm, nn.BatchNorm3d):
    """Of (N, C, D, H, W)."""


_SHARED: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: CpuSyncBatchNorm1d,
    nn.BatchNorm2d: CpuSyncBatchNorm2d,
    nn.BatchNorm3d: CpuSyncBatchNorm3d,
}


def share_statistics(model: nn.Module) -> None:
    """Let every BatchNorm of a model be a `CpuSyncBatchNorm`; the same objects, with the same tensors."""
    _change_classes(model, _SHARED)


def unshare_statistics(model: nn.Module) -> None:
    """Undo `share_statistics`."""
    _change_classes(model, {shared: own for own, shared in _SHARED.items()})


def _change_classes(model: nn.Module, table: dict[type[nn.Module], type[nn.Module]]) -> None:
    for module in model.modules():
        # The classes differ in how they compute and in nothing that an object holds.
        module.__class__ = table.get(type(module), type(module))


def _over_ranks(values: Tensor) -> Tensor:
    total: Tensor = _SumOverRanks.apply(values)
    return total


class _SumOverRanks(Function):
    """The sum of what all ranks give; every rank's loss depends on what each gave."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _SumOverRanks.forward(ctx, gradient)
