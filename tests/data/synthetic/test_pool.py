import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from helpers.data_files import arrays, write_folder, write_pairs
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_paf.data import SyntheticPool
from lightning_paf.data.datasets import MixedDataset
from lightning_paf.data.readers import npy
from lightning_paf.data.sources import ImageSet

LIKE = (0, 4, 4, 3)


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=6),
    mapped=st.integers(1, 12),
    gaps=st.integers(0, 5),
    data=st.data(),
)
def test_files_are_numbered_as_one_array(tmp_path_factory, sizes, mapped, gaps, data):
    """Results are the same for any division among files and folders, and any number of mapped files."""
    root, (image, label) = tmp_path_factory.mktemp("pool"), arrays(n=sum(sizes))
    last = sizes.pop()
    pairs = write_pairs(root / "pairs", image[:-last], label[:-last], {f"{i}.": n for i, n in enumerate(sizes)})
    pool = SyntheticPool([pairs, write_folder(root / "single", image[-last:], label[-last:])])
    assert len(pool) == len(label)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(npy, "MAPPED_FILES", mapped)
        for _ in range(3):
            index = data.draw(st.lists(st.integers(0, len(pool) - 1), max_size=12))
            rows = np.asarray(data.draw(st.permutations(range(len(index) + gaps)))[: len(index)], np.int64)
            batch = fetch(pool, index, rows, len(index) + gaps)
            np.testing.assert_array_equal(batch.images[rows], image[index])
            np.testing.assert_array_equal(batch.labels[rows], label[index])
            left = np.setdiff1d(np.arange(len(batch)), rows)
            assert (batch.images[left] == 7).all()
            assert (batch.labels[left] == -1).all()
            pool = pickle.loads(pickle.dumps(pool)) if data.draw(st.booleans()) else pool


def fetch(pool, index, rows=None, size=None):
    batch = ImageSet(np.full((size or len(index), 4, 4, 3), 7, np.uint8), np.full(size or len(index), -1))
    pool.fetch(np.asarray(index, np.int64), batch, np.arange(len(index)) if rows is None else rows)
    return batch


def test_no_image_is_pickled(tmp_path):
    folder = write_folder(tmp_path / "large", np.zeros((3000, 4, 4, 3), np.uint8), np.zeros(3000, np.int64))
    pickled = pickle.dumps(SyntheticPool([folder]))
    assert len(pickled) < 1000
    assert len(pickle.loads(pickled)) == 3000


def test_every_class_must_occur_somewhere(tmp_path):
    image, _ = arrays(n=4)
    first = write_folder(tmp_path / "first", image, np.array([0, 0, 1, 1]))
    second = write_folder(tmp_path / "second", image, np.array([1, 2, 2, 2]))
    SyntheticPool([first, second]).check(LIKE, 3)  # sets sorted by class come in such parts
    with pytest.raises(ValueError, match=r"all 5 classes must occur, got no image of 3, 4\."):
        SyntheticPool([first, second]).check(LIKE, 5)


def test_labels_are_counted_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(npy, "CHUNK_BYTES", 40)
    image, _ = arrays(n=12)
    for number, kind in enumerate((np.int64, np.uint64, ">i4")):
        label = np.repeat([0, 1, 2], [5, 6, 1]).astype(kind)
        pool = SyntheticPool([write_folder(tmp_path / str(number), image, label)])
        pool.check(LIKE, 3)
        with pytest.raises(ValueError, match=r"got no image of 3\."):
            pool.check(LIKE, 4)


FILES, SIZE = 200, 50_000


@pytest.mark.parametrize("files", [1, FILES])
def test_memory_does_not_grow_with_the_pool(tmp_path, files):
    """The pool has 10 million images, 31 GB in sparse files."""
    probe = tmp_path / "probe"
    with probe.open("wb") as file:
        file.truncate(64 * 2**20)
    if probe.stat().st_blocks * 512 > 2**20:
        pytest.skip("this file system has no sparse files")
    folder, size = tmp_path / "pool", FILES * SIZE // files
    folder.mkdir()
    for number in range(files):
        np.lib.format.open_memmap(folder / f"{number:04}.image.npy", "w+", np.uint8, (size, 32, 32, 3))
        np.lib.format.open_memmap(folder / f"{number:04}.label.npy", "w+", np.int64, (size,))
    real = ImageSet(np.zeros((50, 32, 32, 3), np.uint8), np.zeros(50, np.int64))
    tracemalloc.start()
    try:
        pool = SyntheticPool([folder])
        pool.check((0, 32, 32, 3), 1)
        batch = MixedDataset(real, pool).__getitems__(range(0, len(pool), len(pool) // 256))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(pool) == FILES * SIZE
    assert batch.synthetic.tolist() == [False] + [True] * 256
    assert peak < 16 * 2**20, "the labels alone are 80 MB"
    for file in folder.iterdir():
        file.unlink()


def test_open_files_are_bounded(tmp_path):
    handles = Path("/proc/self/fd")
    if not handles.exists():
        pytest.skip("this system does not list open files")
    n = npy.MAPPED_FILES
    pool = SyntheticPool([write_pairs(tmp_path / "a", *arrays(n=n), {f"{i}.": 1 for i in range(n)})])
    before = len(list(handles.iterdir()))
    fetch(pool, range(n))
    assert len(list(handles.iterdir())) - before <= npy.MAPPED_FILES


def test_arrays_that_were_written_by_hand_are_checked(tmp_path):
    image, label = arrays()
    with pytest.raises(ValueError, match=r"labels must be 0 to 1, got 0 to 2"):
        SyntheticPool([write_folder(tmp_path / "a", image, label)]).check(LIKE, 2)
    with pytest.raises(ValueError, match=r"got \(4, 4, 3\)"):
        SyntheticPool([tmp_path / "a"]).check((0, 8, 8, 3), 3)
    with pytest.raises(ValueError, match="got float64"):
        SyntheticPool([write_folder(tmp_path / "b", image / 255, label)]).check(LIKE, 3)
    with pytest.raises(ValueError, match="labels of 12 images must have shape"):
        SyntheticPool([write_folder(tmp_path / "c", image, label[1:])]).check(LIKE, 3)


DAMAGE = {
    "cut off": (lambda path: os.truncate(path, path.stat().st_size - 1), "the file must have .* bytes, got"),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"0"), "the file must have .* bytes, got"),
    "empty": (lambda path: os.truncate(path, 0), "damaged, or not an npy file"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
    "in Fortran order": (
        lambda path: np.save(path, np.asfortranarray(arrays(5)[0])),
        "must be in C order",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_file_is_named(tmp_path, case):
    damage, message = DAMAGE[case]
    folder = write_pairs(tmp_path / "a", *arrays(), {"0.": 7, "1.": 5})
    damage(folder / "1.image.npy")
    with pytest.raises(ValueError, match=rf"1\.image\.npy: .*{message}"):
        SyntheticPool([folder])


def test_a_file_that_changes_after_the_check_is_named(tmp_path):
    folder = write_pairs(tmp_path / "a", *arrays(n=9), {"0.": 4, "1.": 5})
    pool = SyntheticPool([folder])
    os.truncate(folder / "1.image.npy", 150)
    fetch(pool, [0, 3])
    with pytest.raises(ValueError, match=r"1\.image\.npy: .* must not change .* got 150 bytes instead of 368"):
        fetch(pool, [7])
