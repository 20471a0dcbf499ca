"""A training loader that knows where it is."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from lightning_paf.data.datasets import RawBatch
from lightning_paf.data.samplers import MixedSampler


class ResumableLoader(DataLoader[RawBatch]):
    """A `DataLoader` whose position in the stream of batches can be saved and restored, for any number of ranks.

    The position counts the global batches that the training has taken; those that workers have fetched ahead of it are
    fetched again after a restart. Its sampler is a `MixedSampler`. Arguments are those of `DataLoader`.
    """

    _position = (0, 0)

    def __iter__(self) -> Iterator[RawBatch]:  # type: ignore[override]  # torch names its own class of iterators
        """Batches from the position on if it lies in this epoch, otherwise all.

        Nothing is fetched before the first one is asked for: Lightning makes the iterator of a resumed training before
        it tells the sampler the epoch.
        """
        epoch = getattr(self.sampler, "epoch", 0)  # Lightning's `overfit_batches` replaces the sampler
        taken = getattr(self.sampler, "first_batch", 0)
        for batch in super().__iter__():
            taken += 1
            self._position = (epoch, taken)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The epoch, and how many of its batches have been taken."""
        epoch, batch = self._position
        return {"epoch": epoch, "batch": batch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue there."""
        self._position = state_dict["epoch"], state_dict["batch"]
        if isinstance(self.sampler, MixedSampler):
            self.sampler.resume(*self._position)
