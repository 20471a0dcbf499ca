"""A training loader whose position can be saved."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from lightning_paf.data.datasets import RawBatch
from lightning_paf.data.samplers import MixedSampler


class ResumableLoader(DataLoader[RawBatch]):
    """A `DataLoader` whose position in the stream of batches can be restored.

    The position counts the global batches that the training has used, for any number of ranks. Batches that workers
    have prefetched beyond it are fetched again after a restart. The sampler is a `MixedSampler`; arguments are those of
    `DataLoader`.
    """

    _position = (0, 0)

    def __iter__(self) -> Iterator[RawBatch]:  # type: ignore[override]  # torch names its own class of iterators
        """Yield batches from the saved position if it lies in this epoch, otherwise all.

        A generator, because Lightning creates the iterator of a resumed training before it sets the sampler's epoch.
        """
        epoch = getattr(self.sampler, "epoch", 0)  # Lightning's `overfit_batches` replaces the sampler
        used = getattr(self.sampler, "first_batch", 0)
        for batch in super().__iter__():
            used += 1
            self._position = (epoch, used)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The epoch, and the number of its batches that were used."""
        epoch, batch = self._position
        return {"epoch": epoch, "batch": batch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a position."""
        self._position = state_dict["epoch"], state_dict["batch"]
        if isinstance(self.sampler, MixedSampler):
            self.sampler.resume(*self._position)
