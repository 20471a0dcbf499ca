"""Loaders of images that can be resumed and never wait forever."""

import resource
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter, _MultiProcessingDataLoaderIter

from lightning_paf.data.datasets import RawBatch
from lightning_paf.data.samplers import MixedSampler
from lightning_paf.utils.terminal import clause

WAIT = 300
"""Seconds after which a batch of a worker process is given up."""

FILES, FILES_OF_A_WORKER = 64, 16
"""Open files that a process with workers needs, and those for each worker.

Pipes and prefetched batches are open files.
"""


def check_workers(number: int) -> None:
    """Check the number of worker processes.

    With fewer open files than they need, some wait for each other forever.

    Raises:
        ValueError: It is negative, or the process may not open enough files.
    """
    if number < 0:
        raise ValueError(f"num_workers must be at least 0, got {number}. Pass --data.num_workers 0 for none.")
    most, needed = resource.getrlimit(resource.RLIMIT_NOFILE)[0], FILES + FILES_OF_A_WORKER * number
    if number and most != resource.RLIM_INFINITY and most < needed:
        raise ValueError(
            f"{number} worker processes must be allowed {needed} open files, got {most}. Run `ulimit -n {needed}`, or "
            f"pass --data.num_workers {max(0, (most - FILES) // FILES_OF_A_WORKER)}."
        )


class _Workers(_MultiProcessingDataLoaderIter):
    """Worker processes; a failure to create them, without /dev/shm, is one error."""

    def __del__(self) -> None:
        if hasattr(self, "_workers"):
            super().__del__()


class ImageLoader(DataLoader[RawBatch]):
    """A `DataLoader` whose workers fail with an error of one sentence."""

    def _get_iterator(self) -> _BaseDataLoaderIter:
        return _Workers(self) if self.num_workers else super()._get_iterator()

    def __iter__(self) -> Iterator[RawBatch]:  # type: ignore[override]  # torch names its own class of iterators
        """Yield batches.

        Raises:
            ValueError: A worker process failed, or sent no batch for `timeout` seconds.
        """
        try:
            yield from super().__iter__()
        except (RuntimeError, ValueError, OSError) as error:
            if not self.num_workers:
                raise
            reason = str(error).strip().splitlines()[-1]  # of the traceback in the worker
            if reason.startswith("ValueError: "):
                raise ValueError(reason.removeprefix("ValueError: ")) from error
            raise ValueError(
                f"Worker processes must fetch batches, got {clause(reason)}. Pass --data.num_workers 0; or enlarge "
                "/dev/shm (Docker: --shm-size) or the number of open files (ulimit -n)."
            ) from error


class ResumableLoader(ImageLoader):
    """A loader whose position in the stream of batches can be restored.

    The position counts the global batches that the training has used, for any number of ranks. Batches that workers
    have prefetched beyond it are fetched again after a restart. The sampler is a `MixedSampler`; arguments are those of
    `DataLoader`.
    """

    _position = (0, 0)

    def __iter__(self) -> Iterator[RawBatch]:  # type: ignore[override]
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
