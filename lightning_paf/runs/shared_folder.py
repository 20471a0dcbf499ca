"""Check that all ranks share one run folder."""

import contextlib
import platform
import time
import uuid
from pathlib import Path

from lightning.pytorch import Trainer

from lightning_paf.utils.distributed import gathered

_PAUSE = 0.2


def check_shared(trainer: Trainer, folder: Path, checkpoint: str | None, seconds: float) -> None:
    """Check that all ranks share a run folder and resume from the same checkpoint.

    The first rank creates a file that all others must see. A collective operation: call it on all ranks.

    Args:
        trainer: The trainer; a single rank is not checked.
        folder: Run folder of this rank.
        checkpoint: The checkpoint that this rank resumes from.
        seconds: Time limit for the file to appear.

    Raises:
        ValueError: Raised on all ranks; names those that do not see the file, or all checkpoints.
    """
    if trainer.world_size == 1:
        return
    token = folder / f".shared-{trainer.strategy.broadcast(uuid.uuid4().hex)}"
    if trainer.is_global_zero:
        with contextlib.suppress(OSError):  # no rank will see it
            folder.mkdir(parents=True, exist_ok=True)
            token.touch()
    trainer.strategy.barrier("shared folder")
    mine = {"host": platform.node(), "folder": str(folder.resolve()), "visible": _appears(token, seconds)}
    ranks = gathered({**mine, "checkpoint": checkpoint and Path(checkpoint).name})
    if trainer.is_global_zero:
        with contextlib.suppress(OSError):
            token.unlink()
    missing = [f"rank {i} on {rank['host']} ({rank['folder']})" for i, rank in enumerate(ranks) if not rank["visible"]]
    if missing:
        raise ValueError(
            f"All ranks must share one run folder, but a file of rank 0 on {ranks[0]['host']} in {ranks[0]['folder']} "
            f"did not appear within {seconds:g} s for {', '.join(missing)}. Pass the same --run everywhere, on a file "
            "system that all machines mount."
        )
    if len({rank["checkpoint"] for rank in ranks}) > 1:
        named = ", ".join(f"rank {i} {rank['checkpoint']}" for i, rank in enumerate(ranks))
        raise ValueError(
            f"All ranks must resume from one checkpoint of {folder}, but found: {named}. Repeat the command when no "
            "other process writes to the folder, or pass --ckpt_path FILE."
        )


def _appears(path: Path, seconds: float) -> bool:
    """Wait until a file can be opened; listings of network folders are cached."""
    end = time.monotonic() + seconds
    while True:
        try:
            path.open("rb").close()
            return True
        except OSError:
            if time.monotonic() > end:
                return False
        time.sleep(_PAUSE)
