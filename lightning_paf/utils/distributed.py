"""What each rank knows, put together."""

from typing import Any

import torch


def gathered(mine: Any) -> list[Any]:
    """What each rank holds, in their order; to be called on all of them.

    Args:
        mine: What this one holds: tensors on the CPU, and plain values.
    """
    if not torch.distributed.is_initialized():
        return [mine]
    all_of_them: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(all_of_them, mine)
    return all_of_them
