"""Work that takes another time on every rank."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from torch import distributed

_FOR_EVER = timedelta(days=10_000)
"""A rank that has died is found out in another way (see `RankWatch`); one that lives is waited for."""


@contextmanager
def unequal_work() -> Iterator[Callable[[], None]]:
    """Let all ranks end a `with` block together, however long the last one takes.

    An ordinary collective operation fails after the time-out of the process group (30 minutes, unless
    `--trainer.strategy.timeout` says otherwise), which an attack on one rank can exceed while the others have finished.
    All ranks must enter; nobody waits after an error.

    Yields:
        Waits for all ranks in between, the same way.
    """
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        yield lambda: None
        return
    # gloo, on GPUs too: waiting there keeps no device busy, and only its time-outs can be as long.
    group = distributed.new_group(backend="gloo", timeout=_FOR_EVER)
    assert isinstance(group, distributed.ProcessGroup)  # every rank is in it

    def wait() -> None:
        distributed.barrier(group)

    yield wait
    wait()
    distributed.destroy_process_group(group)
