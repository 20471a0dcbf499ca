"""Synchronised batch normalisation for CPUs; torch implements it for GPUs only."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function


class CpuSyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """`torch.nn.SyncBatchNorm` for CPUs, see `share_statistics`.

    In train mode, every forward and backward pass is a collective operation; in eval mode, none is.
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
        self._update_running(mean.detach(), variance.detach() * (count / max(count - 1, 1)))
        y = centered * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(input.dtype)

    @torch.no_grad()
    def _update_running(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        factor = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), factor)
        self.running_var.lerp_(variance.to(self.running_var), factor)


class CpuSyncBatchNorm1d(CpuSyncBatchNorm, nn.BatchNorm1d):
    """For (N, C) or (N, C, L)."""


class CpuSyncBatchNorm2d(CpuSyncBatchNorm, nn.BatchNorm2d):
    """For (N, C, H, W)."""


class CpuSyncBatchNorm3d(CpuSyncBatchNorm, nn.BatchNorm3d):
    """For (N, C, D, H, W)."""


_SHARED: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: CpuSyncBatchNorm1d,
    nn.BatchNorm2d: CpuSyncBatchNorm2d,
    nn.BatchNorm3d: CpuSyncBatchNorm3d,
}


def share_statistics(model: nn.Module) -> None:
    """Make every BatchNorm of a model a `CpuSyncBatchNorm`, in place."""
    _change_classes(model, _SHARED)


def unshare_statistics(model: nn.Module) -> None:
    """Undo `share_statistics`."""
    _change_classes(model, {shared: plain for plain, shared in _SHARED.items()})


def _change_classes(model: nn.Module, table: dict[type[nn.Module], type[nn.Module]]) -> None:
    for module in model.modules():
        # The classes differ in `forward` only, not in attributes.
        module.__class__ = table.get(type(module), type(module))


def _over_ranks(values: Tensor) -> Tensor:
    total: Tensor = _SumOverRanks.apply(values)
    return total


class _SumOverRanks(Function):
    """Sum over ranks, with the sum over ranks as its backward pass.

    The loss of every rank depends on the values of all ranks.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _SumOverRanks.forward(ctx, gradient)
