import errno
import fcntl
import importlib.util
import os
import shutil
import signal
import sys
import threading
import tracemalloc
from itertools import count

import numpy as np
import pytest
from helpers.data_files import arrays, write_npz

from lightning_paf.data.readers import npy
from lightning_paf.data.synthetic import convert as convert_module
from lightning_paf.data.synthetic.convert import convert, converted_folder, is_converted

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


def killed_before_line(number, *conversion):
    """Convert in another process, which is killed before the line that is the `number`-th new one; whether it was."""
    process = os.fork()
    if process == 0:
        lines = set()

        def trace(frame, event, argument):
            if frame.f_code.co_filename != convert_module.__file__:
                return None
            lines.add(frame.f_lineno)
            if len(lines) > number:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        convert(*conversion)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(process, 0)[1])


def test_a_conversion_killed_at_any_line_is_done_again_and_leaves_nothing(tmp_path):
    for number in count():
        source = write_npz(tmp_path / str(number) / "pool.npz")
        folder = converted_folder(source, None)
        killed = killed_before_line(number, source, folder, LIKE, 3)
        convert(source, folder, LIKE, 3)
        np.testing.assert_array_equal(load(folder)[0], arrays()[0])
        assert sorted(source.parent.iterdir()) == [source, folder]
        if not killed:
            break
    assert number > 40


def test_what_a_killed_conversion_of_an_older_version_left_is_removed_and_no_more(tmp_path):
    source = write_npz(tmp_path / "a[1].npz")
    left = tmp_path / f".{converted_folder(source, None).name}.abcdefgh"
    others = [tmp_path / ".a1.npz.0123456789ab.abcdefgh", tmp_path / ".a[1].npz.mine"]
    for folder in (left, *others):
        folder.mkdir()
    os.utime(source, ns=(0, 1))
    assert sorted(tmp_path.iterdir()) == sorted([source, left, *others])
    folder = converted(source)
    assert sorted(tmp_path.iterdir()) == sorted([source, folder, *others])


@pytest.mark.parametrize("label_offset", [0, 1])
def test_one_of_several_processes_converts_and_the_others_wait(tmp_path, monkeypatch, label_offset):
    """Or, where the first one fails, the next one tries; and nothing is left."""
    image, label = arrays()
    np.savez(tmp_path / "pool.npz", image=image, label=label + label_offset)
    begun, go_on, written, errors = threading.Event(), threading.Event(), [], []
    write = convert_module.write_npy

    def slow(path, *array):
        written.append(path.name)
        begun.set()
        assert go_on.wait(10)
        write(path, *array)

    def work():
        try:
            converted(tmp_path / "pool.npz")
        except ValueError as error:
            errors.append(str(error))

    monkeypatch.setattr(convert_module, "write_npy", slow)
    threads = [threading.Thread(target=work) for _ in range(3)]
    threads[0].start()
    assert begun.wait(10)
    for thread in threads[1:]:
        thread.start()
    threads[1].join(0.1)
    assert written == ["label.npy"], "a second one has begun"
    go_on.set()
    for thread in threads:
        thread.join(10)
    if label_offset:
        assert written == ["label.npy"] * 3
        assert len(errors) == 3
        assert list(tmp_path.iterdir()) == [tmp_path / "pool.npz"]
    else:
        assert (written, errors) == (["label.npy", "image.npy"], [])
        assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_another_machine_has_made_meanwhile_is_taken(tmp_path, monkeypatch):
    """As on a network file system that shows new folders late."""
    source = write_npz(tmp_path / "pool.npz")
    folder = converted_folder(source, None)
    write = convert_module.write_npy

    def write_twice(path, *array):
        write(path, *array)
        folder.mkdir(exist_ok=True)
        shutil.copy(path, folder)

    monkeypatch.setattr(convert_module, "write_npy", write_twice)
    convert(source, folder, LIKE, 3)
    np.testing.assert_array_equal(load(folder)[0], arrays()[0])
    assert sorted(tmp_path.iterdir()) == sorted([source, folder])


def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch):
    def no_locks(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(ValueError, match=r"\(No locks available\)\. Pass --data\.cache_dir FOLDER .* with locks"):
        converted(write_npz(tmp_path / "pool.npz"))


IMAGE, LABEL = arrays()
BAD = {
    "nchw": (IMAGE.transpose(0, 3, 1, 2).copy(), LABEL, r"This is NCHW: store images\.transpose\(0, 2, 3, 1\)"),
    "grey without axis": (IMAGE[..., 0].copy(), LABEL, "Add a channel"),
    "grey": (IMAGE[..., :1].copy(), LABEL, r"must be uint8 of shape \(N, H, W, 3\).* Pass --data"),
    "float": (IMAGE / np.float32(255), LABEL, r"got float32 of shape .* Store pixels"),
    "wide integers": (IMAGE.astype(np.int64), LABEL, "got int64"),
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
