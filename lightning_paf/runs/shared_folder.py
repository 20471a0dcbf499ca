"""Several machines that train together need one folder: whether all of them see it is asked before anything is lost."""

import contextlib
import platform
import time
import uuid
from pathlib import Path

from lightning.pytorch import Trainer

from lightning_paf.utils.distributed import gathered

_PAUSE = 0.2


def check_shared(trainer: Trainer, folder: Path, checkpoint: str | None, seconds: float) -> None:
    """Let the first rank write a file into the run folder, and every rank look for it.

    Also compares what the ranks go on from, which each of them has looked up. To be called on all ranks.

    Args:
        trainer: Whose ranks are asked; a single one is not.
        folder: As this rank names it.
        checkpoint: What this rank goes on from.
        seconds: How long to look.

    Raises:
        ValueError: On all ranks; those that do not see the file are named.
    """
    if trainer.world_size == 1:
        return
    token = folder / f".shared-{trainer.strategy.broadcast(uuid.uuid4().hex)}"
    if trainer.is_global_zero:
        with contextlib.suppress(OSError):  # then nobody sees it
            folder.mkdir(parents=True, exist_ok=True)
            token.touch()
    trainer.strategy.barrier("shared folder")
    mine = {"host": platform.node(), "folder": str(folder.resolve()), "sees": _appears(token, seconds)}
    ranks = gathered({**mine, "checkpoint": checkpoint and Path(checkpoint).name})
    if trainer.is_global_zero:
        with contextlib.suppress(OSError):
            token.unlink()
    blind = [f"rank {i} on {rank['host']} ({rank['folder']})" for i, rank in enumerate(ranks) if not rank["sees"]]
    if blind:
        raise ValueError(
            f"All ranks share one run folder, but what rank 0 on {ranks[0]['host']} wrote into {ranks[0]['folder']} is "
            f"not seen after {seconds:g} s by {', '.join(blind)}. Pass the same --run everywhere, on a file system "
            "that all machines mount."
        )
    if len({rank["checkpoint"] for rank in ranks}) > 1:
        named = ", ".join(f"rank {i} {rank['checkpoint']}" for i, rank in enumerate(ranks))
        raise ValueError(
            f"All ranks go on from one checkpoint of {folder}, but found: {named}. Give the same command again once no "
            "other process writes there, or name a file: --ckpt_path FILE."
        )


def _appears(path: Path, seconds: float) -> bool:
    """Whether a file is there, at once or soon; opened, because listings of network folders are kept for a while."""
    end = time.monotonic() + seconds
    while True:
        try:
            path.open("rb").close()
            return True
        except OSError:
            if time.monotonic() > end:
                return False
        time.sleep(_PAUSE)
