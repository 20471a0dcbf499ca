import pickle
import tracemalloc
from itertools import islice

import numpy as np
import pytest
from data_files import arrays, write_folder, write_sparse_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_paf.data import MixedSampler, SyntheticPool
from lightning_paf.data.datasets import MixedDataset
from lightning_paf.data.readers import folder as folders
from lightning_paf.data.sources import ImageSet

LIKE = (0, 4, 4, 3)
SIZES = (5, 1, 9)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    root = tmp_path_factory.mktemp("pool")
    return [write_folder(root / f"part{i}", *arrays(n=n, seed=i)) for i, n in enumerate(SIZES)]


EXPECTED = [arrays(n=n, seed=i) for i, n in enumerate(SIZES)]
EXPECTED_IMAGE, EXPECTED_LABEL = (np.concatenate(column) for column in zip(*EXPECTED, strict=True))


@settings(max_examples=30, deadline=None)
@given(index=st.lists(st.integers(0, 14), max_size=20), gaps=st.integers(0, 5), data=st.data())
def test_any_numbers_are_fetched_to_any_places(parts, index, gaps, data):
    size = len(index) + gaps
    places = np.asarray(data.draw(st.permutations(range(size)))[: len(index)], np.int64)
    batch = ImageSet(np.full((size, 4, 4, 3), 7, np.uint8), np.full(size, -1))
    SyntheticPool(parts).fetch(np.asarray(index, np.int64), batch, places)
    np.testing.assert_array_equal(batch.images[places], EXPECTED_IMAGE[index])
    np.testing.assert_array_equal(batch.labels[places], EXPECTED_LABEL[index])
    left = np.setdiff1d(np.arange(size), places)
    assert (batch.images[left] == 7).all()
    assert (batch.labels[left] == -1).all()


def test_no_image_is_pickled(tmp_path):
    folder = write_folder(tmp_path / "large", np.zeros((3000, 4, 4, 3), np.uint8), np.zeros(3000, np.int64))
    pickled = pickle.dumps(SyntheticPool([folder]))
    assert len(pickled) < 1000
    assert len(pickle.loads(pickled)) == 3000


def test_length_and_check(parts):
    pool = SyntheticPool(parts)
    assert len(pool) == 15
    pool.check(LIKE, 3)


def test_every_class_must_occur_somewhere(parts, tmp_path):
    with pytest.raises(ValueError, match=r"all 5 classes must occur, but there is no image of 3, 4\."):
        SyntheticPool(parts).check(LIKE, 5)
    image, _ = arrays(n=4)
    first = write_folder(tmp_path / "first", image, np.array([0, 0, 1, 1]))
    second = write_folder(tmp_path / "second", image, np.array([1, 2, 2, 2]))
    SyntheticPool([first, second]).check(LIKE, 3)  # sets sorted by class come in such parts


def test_labels_are_counted_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "COUNTED_AT_ONCE", 5)
    image, _ = arrays(n=12)
    folder = write_folder(tmp_path / "a", image, np.array([0] * 5 + [1] * 6 + [2]))
    SyntheticPool([folder]).check(LIKE, 3)
    with pytest.raises(ValueError, match=r"there is no image of 3\."):
        SyntheticPool([folder]).check(LIKE, 4)


def peak_memory(folder, n):
    """Bytes that arrays and Python objects take at most: open and check a pool, then begin an epoch."""
    write_sparse_folder(folder, n)
    real = ImageSet(np.zeros((500, 32, 32, 3), np.uint8), np.zeros(500, np.int64))
    tracemalloc.start()
    try:
        opened = SyntheticPool([folder])
        opened.check(real.images.shape, 1)
        dataset = MixedDataset(real, opened)
        sampler = MixedSampler(
            dataset, batch_size=32, real_per_batch=[10], batches=1000, num_replicas=1, rank=0, seed=0
        )
        numbers = iter(sampler)
        for _ in range(2):
            assert len(dataset.__getitems__(list(islice(numbers, 32))).labels) == 32
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_pool(tmp_path):
    small = peak_memory(tmp_path / "small", 3_000_000)
    large = peak_memory(tmp_path / "large", 50_000_000)  # 154 GB, of which the test reads the labels
    assert large < small + 2**20


def test_arrays_that_were_written_by_hand_are_checked(tmp_path):
    image, label = arrays()
    with pytest.raises(ValueError, match=r"labels must be 0 to 1, but range from 0 to 2"):
        SyntheticPool([write_folder(tmp_path / "a", image, label)]).check(LIKE, 2)
    with pytest.raises(ValueError, match=r"but have \(4, 4, 3\)"):
        SyntheticPool([tmp_path / "a"]).check((0, 8, 8, 3), 3)
    with pytest.raises(ValueError, match="but are float64"):
        SyntheticPool([write_folder(tmp_path / "b", image / 255, label)]).check(LIKE, 3)
    with pytest.raises(ValueError, match="12 images need labels"):
        SyntheticPool([write_folder(tmp_path / "c", image, label[1:])]).check(LIKE, 3)


def test_a_folder_without_arrays_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"not converted yet\. Call prepare_data\(\)"):
        SyntheticPool([tmp_path])
