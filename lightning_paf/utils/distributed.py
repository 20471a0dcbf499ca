"""Collective operations on the ranks of a job.

Without a process group there is one rank.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

_FOREVER = timedelta(days=10_000)


def world_size() -> int:
    """Return the number of ranks."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def gathered(mine: Any) -> list[Any]:
    """Collect one object per rank, in the order of ranks.

    Args:
        mine: This rank's object: tensors on the CPU and plain values.
    """
    if world_size() == 1:
        return [mine]
    objects: list[Any] = [None] * world_size()
    distributed.all_gather_object(objects, mine)
    return objects


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum a tensor over all ranks, without modifying it.

    With one rank, the tensor itself is returned.
    """
    if world_size() == 1:
        return value
    value = value.clone()
    distributed.all_reduce(value)
    return value


def mean_over_ranks(values: Sequence[Tensor]) -> list[Tensor]:
    """Average several tensors over all ranks in one message, without modifying them.

    Args:
        values: Tensors of one dtype and device, of the same shapes on all ranks.
    """
    if world_size() == 1 or not values:
        return list(values)
    flat = sum_over_ranks(torch.cat([value.flatten() for value in values])) / world_size()
    parts = torch.split(flat, [value.numel() for value in values])
    return [part.view(value.shape) for part, value in zip(parts, values, strict=True)]


@contextmanager
def barrier_without_timeout() -> Iterator[Callable[[], None]]:
    """Barrier at the end of a `with` block, without a time limit.

    An ordinary collective operation fails after the time-out of the process group (`--trainer.strategy.timeout`, 30
    minutes by default), which an attack on one rank can exceed while the others wait. All ranks must enter. After an
    exception there is no barrier. A rank that exits closes its connections, which ends the wait of the others.

    Yields:
        The same barrier, for use inside the block.
    """
    if world_size() == 1:
        yield lambda: None
        return
    # gloo, on GPUs too: waiting keeps no device busy, and only its time-outs can be this long.
    group = distributed.new_group(backend="gloo", timeout=_FOREVER)
    assert isinstance(group, distributed.ProcessGroup)  # every rank is in it

    def wait() -> None:
        distributed.barrier(group)

    yield wait
    wait()
    distributed.destroy_process_group(group)


def wait_for_torchrun() -> None:
    """Wait until all processes of torchrun call this function, if there are any."""
    if distributed.is_available() and distributed.is_torchelastic_launched():
        distributed.init_process_group("gloo")
        distributed.barrier()
        distributed.destroy_process_group()
