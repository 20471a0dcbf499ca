import errno
import importlib.util
import os
import tracemalloc

import numpy as np
import pytest
from data_files import arrays, write_npz

from lightning_paf.data.readers import npy
from lightning_paf.data.synthetic import convert as convert_module
from lightning_paf.data.synthetic.convert import convert, converted_folder, find_sources, is_converted

LIKE = (0, 4, 4, 3)


def converted(source, cache_dir=None, like=LIKE, num_classes=3):
    folder = converted_folder(source, cache_dir)
    convert(source, folder, like, num_classes)
    return folder


def load(folder):
    return np.load(folder / "image.npy"), np.load(folder / "label.npy")


@pytest.mark.parametrize("label_type", [np.int64, np.int32, np.uint8, ">i4"])
def test_arrays_come_out_as_they_went_in(tmp_path, label_type):
    image, label = arrays()
    np.savez(tmp_path / "pool.npz", image=image, label=label.astype(label_type))
    folder = converted(tmp_path / "pool.npz")
    assert folder.parent == tmp_path
    got_image, got_label = load(folder)
    np.testing.assert_array_equal(got_image, image)
    np.testing.assert_array_equal(got_label, label)
    assert got_label.dtype == np.int64


def test_conversion_happens_once_and_again_after_a_change(tmp_path):
    source = write_npz(tmp_path / "pool.npz")
    first = converted(source)
    written = (first / "image.npy").stat().st_mtime_ns
    assert converted(source) == first
    assert (first / "image.npy").stat().st_mtime_ns == written
    write_npz(source, seed=1)
    os.utime(source, ns=(0, written + 1))  # file systems with coarse clocks might not show the change
    second = converted(source)
    assert second != first
    np.testing.assert_array_equal(load(second)[0], arrays(seed=1)[0])
    assert sorted(tmp_path.iterdir()) == sorted([source, first, second]), "a temporary folder was left"


def test_cache_dir_takes_the_arrays(tmp_path):
    source = write_npz(tmp_path / "here" / "pool.npz")
    folder = converted(source, tmp_path / "new" / "cache")
    assert folder.parent == tmp_path / "new" / "cache"
    assert is_converted(folder)
    assert list(source.parent.iterdir()) == [source]


def test_a_folder_that_cannot_be_written_names_the_way_out(tmp_path):
    source = write_npz(tmp_path / "pool.npz")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot write the converted arrays here .* Pass --data\.cache_dir"):
        converted(source, tmp_path / "file" / "below")


def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch):
    n = 20_000  # 61 MB
    np.savez_compressed(tmp_path / "pool.npz", image=np.zeros((n, 32, 32, 3), np.uint8), label=np.arange(n) % 3)
    monkeypatch.setattr(npy, "CHUNK_BYTES", 2**20)
    tracemalloc.start()
    try:
        converted(tmp_path / "pool.npz", like=(0, 32, 32, 3))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20


def test_the_slower_of_two_processes_yields(tmp_path, monkeypatch):
    source = write_npz(tmp_path / "pool.npz")
    folder = converted_folder(source, None)
    write = convert_module.write_npy

    def write_while_another_finishes(*array):
        write(*array)
        monkeypatch.setattr(convert_module, "write_npy", write)
        convert(source, folder, LIKE, 3)

    monkeypatch.setattr(convert_module, "write_npy", write_while_another_finishes)
    convert(source, folder, LIKE, 3)
    np.testing.assert_array_equal(load(folder)[0], arrays()[0])
    assert sorted(tmp_path.iterdir()) == sorted([source, folder])


IMAGE, LABEL = arrays()
BAD = {
    "nchw": (IMAGE.transpose(0, 3, 1, 2).copy(), LABEL, r"This is NCHW: store images\.transpose\(0, 2, 3, 1\)"),
    "grey without axis": (IMAGE[..., 0].copy(), LABEL, "Grey images need a channel axis"),
    "grey": (IMAGE[..., :1].copy(), LABEL, r"must be uint8 of shape \(N, H, W, 3\).* Convert them to 3 channel"),
    "float": (IMAGE / np.float32(255), LABEL, r"but are float32 .*np\.round\(255 \* images\)"),
    "wide integers": (IMAGE.astype(np.int64), LABEL, "but are int64"),
    "flat": (IMAGE.reshape(12, -1), LABEL, "Reshape them"),
    "none": (IMAGE[:0], LABEL[:0], "Give at least one image"),
    "another size": (np.zeros((12, 8, 8, 3), np.uint8), LABEL, r"\(H, W, C\) = \(4, 4, 3\), but have \(8, 8, 3\)"),
    "too few labels": (IMAGE, LABEL[:-1], r"12 images need labels of shape \(12,\), but these have \(11,\)"),
    "one-hot labels": (IMAGE, np.eye(3, dtype=np.int64)[LABEL], "one class number for each image"),
    "float labels": (IMAGE, LABEL.astype(float), "labels must be integers, but are float64"),
    "labels from 1": (IMAGE, LABEL + 1, "labels must be 0 to 2, but range from 1 to 3"),
    "negative labels": (IMAGE, LABEL - 1, "range from -1 to 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arrays_are_refused_and_nothing_is_left(tmp_path, case):
    image, label, message = BAD[case]
    source = tmp_path / "pool.npz"
    np.savez(source, image=image, label=label)
    with pytest.raises(ValueError, match=rf"pool\.npz: .*{message}"):
        converted(source)
    assert list(tmp_path.iterdir()) == [source]


def test_a_damaged_file_leaves_nothing(tmp_path):
    source = write_npz(tmp_path / "pool.npz")
    content = bytearray(source.read_bytes())
    content[300] ^= 1
    source.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="damaged"):
        converted(source)
    assert list(tmp_path.iterdir()) == [source]


def test_folders_stand_for_the_archives_in_them(tmp_path):
    parts = [write_npz(tmp_path / "cifar5m" / f"part{i}.npz", ("X", "Y")) for i in range(6)]
    (tmp_path / "cifar5m" / "README").touch()
    single = write_npz(tmp_path / "single.npz")
    assert find_sources([tmp_path / "cifar5m", single]) == [*parts, single]
    folder = converted(parts[0])
    assert find_sources([tmp_path / "cifar5m"]) == parts, "converted arrays are not taken for a part"
    assert find_sources([folder]) == [folder]
    assert converted_folder(folder, tmp_path) == folder


def test_missing_sources_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"holds no \.npz, \.pickle, \.pkl, \.parquet file and no manifest\.json\. Check --data"
    ):
        find_sources([tmp_path])
    with pytest.raises(ValueError, match=r"nowhere\.npz: there is no such file or folder"):
        converted_folder(tmp_path / "nowhere.npz", None)


def test_test_images_beside_training_images_are_refused(tmp_path):
    for name in ("train-00000-of-00001.npz", "validated.npz"):
        write_npz(tmp_path / name)
    assert len(find_sources([tmp_path])) == 2
    write_npz(tmp_path / "test-00000-of-00001.npz")
    with pytest.raises(ValueError, match=r"test-00000-of-00001\.npz is held out by its name\. Put the training files"):
        find_sources([tmp_path])


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    source = write_npz(tmp_path / "pool.npz")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match=r"cannot write .*\(No space left on device\)\. Pass --data\.cache_dir"):
        converted(source)
    assert list(tmp_path.iterdir()) == [source]


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"a\.parquet: .*pip install 'lightning-paf\[parquet\]'"):
        converted(tmp_path / "a.parquet")
