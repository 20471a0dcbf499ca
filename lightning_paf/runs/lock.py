"""Lock of a run folder: one training at a time, on all machines that share it."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info

from lightning_paf.utils.claim import Claim, Heartbeats, Owner, read_owner, take
from lightning_paf.utils.files import explained
from lightning_paf.utils.terminal import printable

FILE = ".run.lock"
TIMEOUT = 60.0
"""Seconds without a heartbeat, six intervals, until a remote owner counts as dead."""
_PAUSE = 0.5


@contextlib.contextmanager
def locked(folder: Path, log: Callable[[str], None] = rank_zero_info) -> Iterator[Callable[[], None]]:
    """Lock a run folder, on the first rank of a job.

    A dead owner on this machine is replaced immediately. For an owner on another machine or in another container, this
    function waits for a heartbeat, at most `TIMEOUT`. An owner that was suspended for longer and has lost the folder
    ends its process with status 1 before it writes again.

    Args:
        folder: Created if missing; removed at the end if it is empty.
        log: Function that logs the replacement of a dead owner.

    Yields:
        A function to call before a write; it ends this process if another one has taken over the folder.

    Raises:
        ValueError: Another training is running in the folder, or the lock cannot be written.
    """
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with explained(folder, "a run folder"):
            folder.mkdir(parents=True, exist_ok=True)
            claim = _wait_for(folder / FILE, log)
        claim.on_loss = partial(check_owner, claim.path, claim.owner)
        with claim:
            yield claim.on_loss
    finally:
        with contextlib.suppress(OSError):  # not empty
            for path in created:
                path.rmdir()


def check_owner(path: Path, owner: Owner) -> None:
    """End this process if the lock `path` no longer belongs to `owner`.

    An exception is not enough: a failing training still writes to its folder.
    """
    if read_owner(path) == owner:
        return
    time.sleep(_PAUSE)  # a process that checks for a dead owner moves the file for an instant
    other = read_owner(path)
    if other == owner:
        return
    now = f"belongs to {_described(other)}" if other else "was removed"
    sys.stderr.write(
        f"lightning-paf: error: This training has lost its run folder: {path} {now}. It was suspended for longer than "
        f"{TIMEOUT:.0f} s, or the file was removed. The training ends without writing anything.\n"
    )
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _wait_for(path: Path, log: Callable[[str], None]) -> Claim:
    """Take the lock if its owner is dead; raise an error if it is alive."""
    heartbeats, before, waiting = Heartbeats(), read_owner(path), False
    while (claim := take(path, TIMEOUT, heartbeats)) is None:
        owner = read_owner(path)
        if owner and not owner.is_dead() and (owner.is_near() or owner != before or heartbeats.any_of(path)):
            raise ValueError(
                f"A run folder must be used by one training at a time, but {path.parent} is in use by "
                f"{_described(owner)}. Pass another --run, or stop that process first."
            )
        if not waiting:
            rank_zero_info(f"{path} exists: waiting for a heartbeat of its owner, at most {TIMEOUT:.0f} s.")
        waiting = True
        time.sleep(_PAUSE)
    if before:
        log(f"Taking over {path.parent} from {_described(before)}, which ended without releasing it.")
    return claim


def _described(owner: Owner) -> str:
    return printable(f"{owner} since {owner.since} ({owner.command})")
