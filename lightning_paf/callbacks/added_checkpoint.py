"""Checkpoints of the user in addition to those of the run folder."""

import re
from collections.abc import Iterable

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint


class AddedCheckpoint(ModelCheckpoint):
    """ModelCheckpoint whose saved state is kept apart from that of another one.

    Lightning names states by the monitored metric and the interval, and refuses equal names.
    """

    number: int

    @property
    def state_key(self) -> str:
        """Name of the state in checkpoints."""
        return f"{super().state_key}, callback {self.number}"

    @classmethod
    def keep_states_apart(cls, added: Iterable[Callback], others: Iterable[Callback]) -> None:
        """Change each ModelCheckpoint with the state key of another to this class.

        Args:
            added: Callbacks to change, in the order of the command line.
            others: Callbacks that stay unchanged, so that their states in existing checkpoints are found.
        """
        keys = {callback.state_key for callback in others}
        for number, callback in enumerate(added):
            if type(callback) is ModelCheckpoint and callback.state_key in keys:
                callback.__class__ = cls
                callback.number = number  # type: ignore[attr-defined]
            keys.add(callback.state_key)

    @staticmethod
    def omit_folders(callbacks: Iterable[Callback]) -> None:
        """Name checkpoints by metrics without their folders, as in `acc_pgd=0.5`."""
        for saver in callbacks:
            if isinstance(saver, ModelCheckpoint) and saver.filename and saver.auto_insert_metric_name:
                saver.filename = re.sub(r"\{(?:[^{}:]*/)?([^{}:/]+)", r"\1=\g<0>", saver.filename)
                saver.auto_insert_metric_name = False
