import os
import pickle
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from data_files import arrays, write_folder, write_npz, write_shards, write_sparse_shards
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_paf.data import MixedSampler, SyntheticPool, shard_check
from lightning_paf.data.datasets import MixedDataset
from lightning_paf.data.manifest import read_manifest
from lightning_paf.data.readers import npy
from lightning_paf.data.readers.npy import MappedRows, SingleRows
from lightning_paf.data.shard_check import check_shards, find_damage
from lightning_paf.data.shard_writer import write_pool
from lightning_paf.data.sources import ImageSet
from lightning_paf.data.synthetic import pool as pool_module
from lightning_paf.data.synthetic.convert import converted_folder, find_sources
from lightning_paf.data.synthetic.pool import choose_reader

LIKE = (0, 4, 4, 3)


def fetch(pool, index):
    batch = ImageSet(np.zeros((len(index), 4, 4, 3), np.uint8), np.zeros(len(index), np.int64))
    pool.fetch(np.asarray(index, np.int64), batch, np.arange(len(index)))
    return batch


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    plain=st.integers(0, 3),
    mapped=st.booleans(),
    data=st.data(),
)
def test_shards_are_numbered_as_one_array(tmp_path_factory, sizes, plain, mapped, data):
    """Whatever the division, mapped or not, and beside a folder of the other kind."""
    root = tmp_path_factory.mktemp("shards")
    image, label = arrays(n=sum(sizes) + plain)
    folders = [write_shards(root / "pool", image[: sum(sizes)], label[: sum(sizes)], sizes)]
    if plain:
        folders.append(write_folder(root / "plain", image[sum(sizes) :], label[sum(sizes) :]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool_module, "MAPPED_SHARDS", 50 if mapped else 0)
        pool = SyntheticPool(folders)
    assert len(pool) == len(label)
    for _ in range(3):
        index = data.draw(st.lists(st.integers(0, len(pool) - 1), max_size=12))
        batch = fetch(pool, index)
        np.testing.assert_array_equal(batch.images, image[index])
        np.testing.assert_array_equal(batch.labels, label[index])
        pool = pickle.loads(pickle.dumps(pool)) if data.draw(st.booleans()) else pool


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    shard_size=st.integers(1, 12),
    chunk_bytes=st.integers(1, 300),
)
def test_a_written_pool_holds_its_sources_in_order(tmp_path_factory, lengths, shard_size, chunk_bytes):
    root = tmp_path_factory.mktemp("write")
    parts = [arrays(n=n, seed=i) for i, n in enumerate(lengths)]
    sources = [write_npz(root / f"{i}.npz", n=n, seed=i) for i, n in enumerate(lengths)]
    reports = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(npy, "CHUNK_BYTES", chunk_bytes)
        patch.setattr(os, "fsync", lambda handle: None)  # slow, and of no use to files that are thrown away
        manifest = write_pool(sources, root / "pool", shard_size, lambda *report: reports.append(report))
    image, label = (np.concatenate(column) for column in zip(*parts, strict=True))
    assert read_manifest(root / "pool") == manifest
    assert [shard.images for shard in manifest.shards[:-1]] == [shard_size] * (len(manifest.shards) - 1)
    assert sum(done for done, _ in reports) == len(label)
    assert {total for _, total in reports} == {len(label)}
    check_shards(root / "pool")
    assert find_damage(root / "pool", manifest, lambda read: None) == []
    batch = fetch(SyntheticPool([root / "pool"]), range(len(label)))
    np.testing.assert_array_equal(batch.images, image)
    np.testing.assert_array_equal(batch.labels, label)
    assert {file.name for file in root.iterdir()} == {"pool", *(source.name for source in sources)}


def test_pools_and_converted_folders_become_a_pool_again(tmp_path):
    image, label = arrays(n=12)
    first = write_shards(tmp_path / "first", image[:7], label[:7], (3, 4))
    second = write_folder(tmp_path / "second", image[7:], label[7:].astype(">i4"))
    write_pool([first, second], tmp_path / "pool", 5, lambda images, total: None)
    batch = fetch(SyntheticPool([tmp_path / "pool"]), range(12))
    np.testing.assert_array_equal(batch.images, image)
    np.testing.assert_array_equal(batch.labels, label)


def test_a_pool_needs_no_conversion(tmp_path):
    folder = write_shards(tmp_path / "pool", *arrays(), sizes=(5, 7))
    assert find_sources([folder]) == [folder]
    assert converted_folder(folder, tmp_path / "cache") == folder


def test_classes_come_from_the_manifest(tmp_path):
    image, _ = arrays(n=4)
    folder = write_shards(tmp_path / "pool", image, np.array([0, 0, 2, 2]), (2, 2))
    with pytest.raises(ValueError, match=r"there is no image of 1\."):
        SyntheticPool([folder]).check(LIKE, 3)
    with pytest.raises(ValueError, match=r"manifest\.json: labels must be 0 to 1, but range from 0 to 2"):
        SyntheticPool([folder]).check(LIKE, 2)
    with pytest.raises(ValueError, match=r"manifest\.json: .*\(H, W, C\) = \(8, 8, 3\), but have \(4, 4, 3\)"):
        SyntheticPool([folder]).check((0, 8, 8, 3), 3)
    with pytest.raises(ValueError, match=r"Convert them to 1 channel"):
        SyntheticPool([folder]).check((0, 4, 4, 1), 3)
    other = write_folder(tmp_path / "other", image, np.array([1, 1, 1, 1]))
    SyntheticPool([folder, other]).check(LIKE, 3)


# ------------------------------------------------------------------ damage


@pytest.fixture
def pool_folder(tmp_path):
    return write_shards(tmp_path / "pool", *arrays(n=9), sizes=(4, 3, 2))


def flip(path, place=-1):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def replace_by_another_shape(path):
    """Equal size, equal bytes after the header."""
    array = np.load(path)
    np.save(path, array.reshape(len(array), 1, -1))


DAMAGE = {
    "missing": (Path.unlink, "is missing"),
    "cut off": (lambda path: os.truncate(path, path.stat().st_size - 1), "has .* bytes instead of"),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"0"), "has .* bytes instead of"),
    "empty": (lambda path: os.truncate(path, 0), "has 0 bytes instead of"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), r"cannot be read \(Is a directory\)"),
    "another content": (flip, "has other content"),
    "another shape": (replace_by_another_shape, "has other content"),
}


@pytest.mark.parametrize("file", ["1.image.npy", "1.label.npy"])
@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_shard_is_named(pool_folder, file, case):
    damage, message = DAMAGE[case]
    damage(pool_folder / file)
    with pytest.raises(ValueError, match=rf"1 is not: {file} {message}.*Copy them again.*pool verify {pool_folder}`"):
        check_shards(pool_folder)


def test_all_damaged_files_are_counted_and_the_first_ones_named(pool_folder):
    for file in pool_folder.glob("*.npy"):
        file.unlink()
    with pytest.raises(
        ValueError, match=r"6 are not: 0\.image\.npy is missing; .*2\.image.npy is missing; and 1 more\."
    ):
        check_shards(pool_folder)


def test_a_manifest_that_belongs_to_other_arrays_is_found(tmp_path):
    image, label = arrays(n=6)
    folder = write_shards(tmp_path / "pool", image.reshape(6, 4, 3, 4), label, (6,))
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace("[4, 3, 4]", "[4, 4, 3]"))
    with pytest.raises(ValueError, match=r"0\.image\.npy holds uint8 of shape \(6, 4, 3, 4\) instead of uint8 of"):
        check_shards(folder)


def test_a_flipped_bit_between_the_sampled_blocks_is_found_by_reading_everything(tmp_path):
    folder = write_shards(tmp_path / "pool", *arrays(n=4000), sizes=(4000,))  # 192 KB, of which 64 are sampled
    flip(folder / "0.image.npy", 6000)
    check_shards(folder)
    read = []
    damage = find_damage(folder, read_manifest(folder), read.append)
    assert damage == ["0.image.npy has other content (its sha256 differs)"]
    assert sum(read) == sum(file.stat().st_size for file in folder.glob("*.npy"))


def test_a_zeroed_piece_is_found_by_the_sample(tmp_path):
    """As a download leaves it that was cut off in a file of full size."""
    folder = write_shards(tmp_path / "pool", *arrays(n=4000), sizes=(4000,))
    path = folder / "0.image.npy"
    content = path.read_bytes()
    for start in range(128, len(content), 10_000):
        piece = len(content) // (shard_check.SAMPLED_BLOCKS - 1)
        path.write_bytes((content[:start] + bytes(piece) + content[start + piece :])[: len(content)])
        with pytest.raises(ValueError, match="has other content"):
            check_shards(folder)


def test_wrong_class_counts_are_found_by_reading_everything(pool_folder):
    manifest = pool_folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"classes": [2, 1, 1]', '"classes": [1, 2, 1]'))
    check_shards(pool_folder)
    damage = find_damage(pool_folder, read_manifest(pool_folder), lambda read: None)
    assert damage == ["0.label.npy holds (2, 1, 1) images of the classes instead of (1, 2, 1)"]
    manifest.write_text(manifest.read_text().replace('"classes": [1, 2, 1]', '"classes": [2, 1, 1, 0]'))
    assert find_damage(pool_folder, read_manifest(pool_folder), lambda read: None) == []


@pytest.mark.parametrize("mapped", [0, 50])
def test_a_file_that_changes_after_the_check_is_named(pool_folder, monkeypatch, mapped):
    monkeypatch.setattr(pool_module, "MAPPED_SHARDS", mapped)
    pool = SyntheticPool([pool_folder])
    os.truncate(pool_folder / "2.image.npy", 150)
    fetch(pool, [0, 6])
    with pytest.raises(ValueError, match=r"2\.image\.npy: has changed since it was checked: 224 bytes .* it has 150"):
        fetch(pool, [7])


# ------------------------------------------------------------------ writing


def test_existing_folders_are_left_alone(tmp_path):
    source = write_npz(tmp_path / "a.npz")
    (tmp_path / "pool").mkdir()
    with pytest.raises(ValueError, match=r"pool exists\. Give the name of a new folder"):
        write_pool([source], tmp_path / "pool", 5, lambda images, total: None)
    (tmp_path / "other.partial").mkdir()
    with pytest.raises(ValueError, match=r"other\.partial exists: another process .* Remove it"):
        write_pool([source], tmp_path / "other", 5, lambda images, total: None)


@pytest.mark.parametrize("fault", ["damaged", "negative label", "another size", "no room"])
def test_a_failed_write_leaves_nothing(tmp_path, fault, monkeypatch):
    first, second = (
        write_npz(tmp_path / "a.npz"),
        write_npz(tmp_path / "b.npz", size=8 if fault == "another size" else 4),
    )
    message = {"damaged": r"b\.npz: damaged", "another size": r"b\.npz: images must have one size .*\(8, 8, 3\) here"}
    if fault == "damaged":
        flip(second, 300)
    if fault == "negative label":
        np.savez(second, image=arrays()[0], label=np.full(12, -1))
    if fault == "no room":
        monkeypatch.setattr(os, "fsync", lambda handle: os.write(os.open("/dev/full", os.O_WRONLY), b"x"))
    expected = message.get(fault, "No space left.*Give the name" if fault == "no room" else "range from -1 to -1")
    with pytest.raises(ValueError, match=expected):
        write_pool([first, second], tmp_path / "pool", 5, lambda images, total: None)
    assert sorted(tmp_path.iterdir()) == [first, second]


# ------------------------------------------------------------------ size


SHARDS, SHARD_SIZE = 1000, 50_000


@pytest.fixture(scope="module")
def huge(tmp_path_factory):
    """50 million images, 154 GB, in 2,000 files."""
    folder = write_sparse_shards(tmp_path_factory.mktemp("huge") / "pool", SHARDS, SHARD_SIZE)
    yield folder
    for file in folder.iterdir():
        file.unlink()


def mixed(pool, ranks):
    """The first two global batches, as so many ranks fetch them."""
    real = ImageSet(np.zeros((50, 32, 32, 3), np.uint8), np.zeros(50, np.int64))
    dataset = MixedDataset(real, pool)
    shares = []
    for rank in range(ranks):
        sampler = MixedSampler(
            dataset, batch_size=256, real_per_batch=[32], batches=2, num_replicas=ranks, rank=rank, seed=0
        )
        numbers = np.fromiter(sampler, np.int64).reshape(2, -1)
        # the first image of each shard instead of one in the middle: those in the middle are all alike
        numbers = np.where(numbers < 50, numbers, 50 + (numbers - 50) // SHARD_SIZE * SHARD_SIZE)
        shares.append([dataset.__getitems__(batch) for batch in numbers])
    return [[np.concatenate(part) for part in zip(*batch, strict=True)] for batch in zip(*shares, strict=True)]


def test_opening_a_huge_pool_touches_the_manifest_alone(huge, monkeypatch):
    opened = Counter()
    real_open = Path.open

    def counted(path, *mode, **options):
        opened[path.name] += 1
        return real_open(path, *mode, **options)

    monkeypatch.setattr(Path, "open", counted)
    pool = SyntheticPool([huge])
    pool.check((0, 32, 32, 3), 2)
    assert len(pool) == SHARDS * SHARD_SIZE
    assert opened == {"manifest.json": 1}


def test_a_huge_pool_takes_little_memory(huge):
    tracemalloc.start()
    try:
        check_shards(huge)
        pool = SyntheticPool([huge])
        pool.check((0, 32, 32, 3), 2)
        mixed(pool, 1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(pool) == SHARDS * SHARD_SIZE
    assert peak < 32 * 2**20, "the labels alone are 400 MB"


@pytest.mark.parametrize("shards", [pool_module.MAPPED_SHARDS, pool_module.MAPPED_SHARDS + 1])
def test_open_files_are_bounded(tmp_path, shards):
    handles = Path("/proc/self/fd")
    if not handles.exists():
        pytest.skip("this system does not list open files")
    pool = SyntheticPool([write_shards(tmp_path / "pool", *arrays(n=shards), sizes=[1] * shards)])
    before = len(list(handles.iterdir()))
    fetch(pool, range(shards))
    assert len(list(handles.iterdir())) - before <= (2 * shards if shards <= pool_module.MAPPED_SHARDS else 0)


def test_pools_larger_than_the_memory_are_not_mapped():
    assert isinstance(choose_reader(1, 2**30), MappedRows)
    assert isinstance(choose_reader(1, 2**50), SingleRows)


def test_ranks_draw_the_same_batches_from_a_huge_pool(huge):
    expected = mixed(SyntheticPool([huge]), 1)
    for images, labels, synthetic in expected:
        numbers = images[synthetic].reshape(-1, 3072)[:, :8].copy().view("<u8")
        assert len(np.unique(numbers)) > 180  # 224 draws from 1,000 shards
        assert (labels == synthetic).all()
    for ranks in (2, 4):
        for got, want in zip(mixed(pickle.loads(pickle.dumps(SyntheticPool([huge]))), ranks), expected, strict=True):
            for part, other in zip(got, want, strict=True):
                np.testing.assert_array_equal(part, other)
