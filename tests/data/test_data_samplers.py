import tracemalloc
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DistributedSampler

from lightning_paf.data.samplers import MixedSampler, ShardSampler, batches_per_epoch, even_batch_size, real_per_batch


class Sizes:
    """The sizes of a dataset, as the sampler uses them."""

    def __init__(self, real, synthetic):
        self.real_size, self.synthetic_size = real, synthetic

    def __len__(self):
        return self.real_size + self.synthetic_size


def rank_sampler(real=23, synthetic=100, batch_size=8, n_real=3, batches=8, ranks=1, rank=0, seed=0, epoch=0):
    sampler = MixedSampler(
        Sizes(real, synthetic),
        batch_size=batch_size,
        real_per_batch=n_real if isinstance(n_real, list) else [n_real],
        batches=batches,
        num_replicas=ranks,
        rank=rank,
        seed=seed,
    )
    sampler.set_epoch(epoch)
    return sampler


def rank_batches(**options):
    sampler = rank_sampler(**options)
    indices = list(sampler)
    assert len(indices) == len(sampler)
    return np.asarray(indices).reshape(sampler.batches, -1)


@settings(max_examples=20, deadline=None)
@given(
    real=st.integers(1, 50),
    synthetic=st.integers(1, 30),
    per_rank=st.integers(1, 4),
    fraction=st.floats(0, 1),
    batches=st.integers(1, 6),
    seed=st.integers(0, 2**32),
    epoch=st.integers(0, 500),
)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_global_batches_have_the_exact_fraction_on_any_number_of_ranks(
    ranks, real, synthetic, per_rank, fraction, batches, seed, epoch
):
    size = 4 * per_rank
    n_real = real_per_batch(size, fraction)
    sizes = {"real": real, "synthetic": synthetic, "batch_size": size, "n_real": n_real, "batches": batches}
    alone = rank_batches(**sizes, seed=seed, epoch=epoch)
    together = np.hstack([rank_batches(**sizes, seed=seed, epoch=epoch, ranks=ranks, rank=r) for r in range(ranks)])
    np.testing.assert_array_equal(together, alone)
    assert ((alone < real).sum(1) == n_real).all()
    assert alone.min() >= 0
    assert alone.max() < real + synthetic
    for end in range(1, batches + 1):
        so_far = alone[:end]
        seen = np.bincount(so_far[so_far < real], minlength=real)
        assert seen.max() - seen.min() <= 1, "an image was repeated before all had been used"


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_number_of_real_images_per_epoch_and_its_last_value(ranks):
    for epoch, expected in enumerate([0, 2, 5, 5, 5]):
        here = {"n_real": [0, 2, 5], "epoch": epoch, "ranks": ranks}
        together = np.hstack([rank_batches(**here, rank=rank) for rank in range(ranks)])
        assert ((together < 23).sum(1) == expected).all()


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("taken", [0, 3, 8])
def test_only_the_resumed_epoch_skips_used_batches(taken, ranks):
    for rank in range(ranks):
        here = {"epoch": 4, "ranks": ranks, "rank": rank}
        full, sampler = rank_batches(**here), rank_sampler(**here)
        sampler.resume(epoch=4, batch=taken)
        assert len(sampler) == full.size, "the length of the epoch is as before"
        assert list(sampler) == full[taken:].ravel().tolist()
        sampler.set_epoch(5)
        assert list(sampler) == rank_batches(**{**here, "epoch": 5}).ravel().tolist()


def test_a_real_pass_shows_every_real_image():
    batches = batches_per_epoch(23, 8, 3 / 8, "real_pass")
    assert batches == 8
    seen = np.bincount(rank_batches(batches=batches).ravel(), minlength=123)[:23]
    assert seen.sum() == 24
    assert seen.min() == 1


@pytest.mark.parametrize(
    ("real", "batch_size", "fraction", "epoch", "expected"),
    [
        (50_000, 512, 0.5, "real_pass", 196),  # 256 + 256 in Dai et al. 2021
        (50_000, 512, 1.0, "real_pass", 98),
        (48_976, 512, 0.3, 50_000, 98),
        (100, 10, 0.0, 25, 3),
    ],
)
def test_length_of_an_epoch(real, batch_size, fraction, epoch, expected):
    assert batches_per_epoch(real, batch_size, fraction, epoch) == expected


def test_order_is_a_function_of_seed_and_epoch():
    first = rank_batches(seed=1, epoch=2)
    np.testing.assert_array_equal(first, rank_batches(seed=1, epoch=2))
    assert (first != rank_batches(seed=1, epoch=3)).any()
    assert (first != rank_batches(seed=2, epoch=1)).any()


def test_real_and_synthetic_images_are_mixed_within_the_batch():
    real = rank_batches(real=400, n_real=4, batches=100) < 400
    assert (np.abs(real.mean(0) - 0.5) < 0.2).all(), "an index of the batch is reserved"


def test_a_pool_sorted_by_class_and_shorter_than_the_epoch_is_shuffled():
    drawn = rank_batches(real=23, synthetic=10, batches=100)
    drawn = drawn[drawn >= 23] - 23
    counts = np.bincount(drawn, minlength=10)
    assert counts.min() > 20
    assert (np.diff(drawn[:50]) < 0).any()


def test_an_epoch_uses_at_most_two_numbers_of_memory_per_image():
    tracemalloc.start()
    numbers = iter(rank_sampler(real=1000, synthetic=10**12, batch_size=500, n_real=150, batches=200))
    assert len(list(islice(numbers, 500))) == 500
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * 8 * 500 * 200


@pytest.mark.parametrize("sampler", [MixedSampler, ShardSampler])
def test_lightning_keeps_the_samplers(sampler):
    assert issubclass(sampler, DistributedSampler)


def test_shards_divide_all_images_without_padding():
    shards = [list(ShardSampler(range(11), 2, rank)) for rank in range(2)]
    assert shards == [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9]]
    assert [len(ShardSampler(range(11), 2, rank)) for rank in range(2)] == [6, 5]


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3000), ranks=st.integers(1, 40), target=st.integers(1, 600))
def test_all_ranks_evaluate_the_same_number_of_batches(size, ranks, target):
    if size < ranks:
        return
    chosen = even_batch_size(size, ranks, target)
    counts = {-(-len(ShardSampler(range(size), ranks, rank)) // chosen) for rank in range(ranks)}
    assert len(counts) == 1
    if size % ranks == 0:
        assert chosen == target
    if chosen > target:  # no size up to `target` fits
        smallest = size // ranks
        assert all(smallest % b == 0 for b in range(1, target + 1))


def test_even_batch_size_stays_close_to_the_target():
    assert even_batch_size(11, 2, 5) == 4
    assert even_batch_size(11, 2, 256) == 256
    assert even_batch_size(3, 2, 1) == 2
