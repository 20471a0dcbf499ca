"""The position of a loader counts the batches that training has used, not the prefetched ones."""

import gc
import sys
import time
from itertools import islice

import numpy as np
import pytest
import torch

from lightning_paf.data.datasets import MixedDataset, as_fetched
from lightning_paf.data.loader import ResumableLoader
from lightning_paf.data.samplers import MixedSampler
from lightning_paf.data.sources import ImageSet

BATCHES = 6


class Recording(MixedDataset):
    """Counts the batches fetched in this process."""

    fetched = 0

    def __getitems__(self, indices):
        self.fetched += 1
        return super().__getitems__(indices)


def make(workers: int = 0, kind: type[MixedDataset] = Recording, timeout: float = 0) -> ResumableLoader:
    numbers = np.arange(23, dtype=np.uint8)
    dataset = kind(
        ImageSet(np.broadcast_to(numbers[:, None, None, None], (23, 4, 4, 3)).copy(), numbers.astype(np.int64)), None
    )
    sampler = MixedSampler(dataset, batch_size=4, real_per_batch=[4], batches=BATCHES, num_replicas=1, rank=0, seed=0)
    persistent = {"num_workers": workers, "persistent_workers": workers > 0, "timeout": timeout}
    return ResumableLoader(dataset, 4, sampler=sampler, collate_fn=as_fetched, **persistent)


def labels(batches) -> list[list[int]]:
    return [batch.labels.tolist() for batch in batches]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_resumes_after_the_used_batches(workers):
    loader, resumed = make(workers), make(workers)
    first = labels(make())
    loader.sampler.set_epoch(1)
    second = iter(loader)
    begun = labels(islice(second, 2))
    assert loader.state_dict() == {"epoch": 1, "batch": 2}
    resumed.load_state_dict(loader.state_dict())
    assert resumed.state_dict() == loader.state_dict()
    rest = iter(resumed)  # before the epoch is set, as in Lightning
    resumed.sampler.set_epoch(1)
    loader.sampler.set_epoch(1)
    rest = labels(rest)
    assert begun + rest == begun + labels(second)
    assert len(rest) == BATCHES - 2
    assert len(resumed) == len(first) == BATCHES
    resumed.sampler.set_epoch(0)
    assert labels(resumed) == first


def test_used_batches_are_not_fetched_again():
    loader = make()
    loader.load_state_dict({"epoch": 0, "batch": 4})
    assert len(labels(loader)) == loader.dataset.fetched == 2


class Failing(MixedDataset):
    def __getitems__(self, indices):
        raise ValueError("pool.npy: the file must not change. Copy it again.")


class Slow(MixedDataset):
    def __getitems__(self, indices):
        time.sleep(2)


def out_of_memory(tensor):
    raise RuntimeError("unable to allocate shared memory")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Failing, r"^pool\.npy: the file must not change\. Copy it again\.$"),
        (
            Slow,
            "^Worker processes must fetch batches, got DataLoader timed out after 0.5 seconds. Pass",
        ),
        (Recording, "^Worker processes must fetch batches, got RuntimeError: unable to allocate shared memory. Pass"),
    ],
)
def test_errors_and_silence_of_workers_end_in_one_sentence(kind, message, monkeypatch):
    if kind is Recording:
        monkeypatch.setattr(torch.Tensor, "share_memory_", out_of_memory)
    loader = make(1, kind, timeout=0.5 if kind is Slow else 60)
    with pytest.raises(ValueError, match=message):
        next(iter(loader))


@pytest.mark.parametrize("part", ["Queue", "Event"])
def test_no_traceback_follows_workers_that_cannot_be_created(part, monkeypatch):
    def no_space():
        raise OSError(28, "No space left on device.")

    unraisable = []
    monkeypatch.setattr(torch.multiprocessing, part, no_space)
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    with pytest.raises(ValueError, match=r"got \[Errno 28\] No space left on device\. Pass .* enlarge /dev/shm"):
        next(iter(make(1)))
    gc.collect()
    assert unraisable == []
