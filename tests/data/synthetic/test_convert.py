import errno
import fcntl
import importlib.util
import os
import signal
import sys
import threading
import tracemalloc
from itertools import count

import numpy as np
import pytest
from helpers.data_files import arrays, write_npz

from lightning_paf.data.readers import archives, npy
from lightning_paf.data.synthetic import convert as convert_module
from lightning_paf.data.synthetic.convert import convert, converted_folder

LIKE = (0, 4, 4, 3)


def converted(source, cache_dir=None, like=LIKE, num_classes=3):
    folder = converted_folder(source, cache_dir)
    convert(source, folder, like, num_classes)
    return folder


def load(folder):
    return np.load(folder / "image.npy"), np.load(folder / "label.npy")


@pytest.mark.parametrize("label_type", [np.int64, np.uint8, ">i4"])
def test_arrays_are_written_unchanged_with_int64_labels(tmp_path, label_type):
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
    assert sorted(tmp_path.iterdir()) == sorted([source, first, second]), "other files were left"


def test_arrays_go_to_cache_dir(tmp_path):
    source = write_npz(tmp_path / "here" / "pool.npz")
    folder = converted(source, tmp_path / "new" / "cache")
    assert folder.parent == tmp_path / "new" / "cache"
    assert sorted(path.name for path in folder.iterdir()) == ["image.npy", "label.npy"]
    assert list(source.parent.iterdir()) == [source]


def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch):
    n = 8000  # 25 MB
    np.savez_compressed(tmp_path / "pool.npz", image=np.zeros((n, 32, 32, 3), np.uint8), label=np.arange(n) % 3)
    monkeypatch.setattr(npy, "CHUNK_BYTES", 2**18)
    tracemalloc.start()
    try:
        converted(tmp_path / "pool.npz", like=(0, 32, 32, 3))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * 2**20


def killed_before_line(number, *conversion):
    """Convert in another process, killed before its `number`-th new line; return whether it was killed."""
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


def test_a_conversion_killed_at_any_line_is_repeated_and_leaves_nothing(tmp_path):
    for number in count(step=2):
        source = write_npz(tmp_path / str(number) / "pool.npz")
        folder = converted_folder(source, None)
        killed = killed_before_line(number, source, folder, LIKE, 3)
        convert(source, folder, LIKE, 3)
        np.testing.assert_array_equal(load(folder)[0], arrays()[0])
        assert sorted(source.parent.iterdir()) == [source, folder]
        assert len(list(folder.iterdir())) == 2
        if not killed:
            break
    assert number > 40


def test_unfinished_conversions_of_older_versions_are_removed_and_other_folders_kept(tmp_path):
    source = write_npz(tmp_path / "a[1].npz")
    older = converted(source)
    os.utime(source, ns=(0, 1))
    unfinished = converted_folder(source, None)
    others = [tmp_path / "a1.npz.0123456789ab", tmp_path / "a[1].npz.mine"]
    for folder in (unfinished, *others):
        folder.mkdir()
    os.utime(source, ns=(0, 2))
    folder = converted(source)
    assert sorted(tmp_path.iterdir()) == sorted([source, older, folder, *others])


@pytest.mark.parametrize("label_offset", [0, 1])
def test_one_process_converts_while_others_wait(tmp_path, monkeypatch, caplog, label_offset):
    """If one process fails, the next one tries, and nothing is left."""
    image, label = arrays()
    np.savez(tmp_path / "pool.npz", image=image, label=label + label_offset)
    begun, resume, written, errors = threading.Event(), threading.Event(), [], []
    write = convert_module.write_whole

    def slow(path, content):
        written.append(path.name)
        begun.set()
        assert resume.wait(10)
        write(path, content)

    def work():
        try:
            converted(tmp_path / "pool.npz")
        except ValueError as error:
            errors.append(str(error))

    monkeypatch.setattr(convert_module, "write_whole", slow)
    caplog.set_level("INFO")
    threads = [threading.Thread(target=work) for _ in range(3)]
    threads[0].start()
    assert begun.wait(10)
    for thread in threads[1:]:
        thread.start()
    threads[1].join(0.1)
    assert "Waiting for another process that writes pool.npz." in caplog.text
    assert written == ["label.npy"], "two processes write"
    resume.set()
    for thread in threads:
        thread.join(10)
    if label_offset:
        assert written == ["label.npy"] * 3
        assert len(errors) == 3
        assert list(tmp_path.iterdir()) == [tmp_path / "pool.npz"]
    else:
        assert (written, errors) == (["label.npy", "image.npy"], [])
        assert len(list(tmp_path.iterdir())) == 2


def failing(*error):
    """A function of the operating system that fails."""

    def fail(*arguments):
        raise OSError(*error)

    return fail


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        ((fcntl, "flock"), (errno.ENOLCK, "No locks available"), r"\(No locks available\)\. Pass --data\.cache_dir"),
        ((os, "fsync"), (errno.ENOSPC, "No space left on device"), r"\(No space left on device\)\. Pass --data"),
    ],
)
def test_a_folder_that_cannot_be_written_is_named_with_the_option(tmp_path, monkeypatch, function, error, message):
    source = write_npz(tmp_path / "pool.npz")
    with monkeypatch.context() as patch:
        patch.setattr(*function, failing(*error))
        with pytest.raises(ValueError, match=rf"cannot write the converted arrays here {message}"):
            converted(source)
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == [source]
    with pytest.raises(ValueError, match=r"cannot write the converted arrays here .* Pass --data\.cache_dir"):
        converted(source, source / "below")


def test_a_source_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    source = write_npz(tmp_path / "pool.npz")
    monkeypatch.setattr(archives, "read_rows", failing(errno.EIO, "Input/output error"))
    with pytest.raises(ValueError, match=r"pool\.npz: must be readable, got Input/output error\. Check the disk"):
        converted(source)
    assert list(tmp_path.iterdir()) == [source]


def test_an_unfinished_conversion_by_another_process_survives_an_error(tmp_path):
    source = tmp_path / "pool.npz"
    np.savez(source, image=IMAGE, label=LABEL + 1)
    theirs = tmp_path / "pool.npz.0123456789ab"

    def begin(*arguments):
        theirs.mkdir()
        return CHECK_LABELS(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert_module, "check_labels", begin)
        with pytest.raises(ValueError, match="labels must be 0 to 2"):
            converted(source)
    assert sorted(tmp_path.iterdir()) == [source, theirs]


IMAGE, LABEL = arrays()
CHECK_LABELS = convert_module.check_labels
BAD = {
    "nchw": (IMAGE.transpose(0, 3, 1, 2).copy(), LABEL, r"This is NCHW: store images\.transpose\(0, 2, 3, 1\)"),
    "grey without axis": (IMAGE[..., 0].copy(), LABEL, r"shape \(12, 4, 4, 1\)\. Pass --data\.channels 1 with"),
    "grey": (IMAGE[..., :1].copy(), LABEL, r"must be uint8 of shape \(N, H, W, 3\).* Pass --data\.channels 1 with"),
    "float": (
        IMAGE / np.float32(255),
        LABEL,
        r"images must be uint8 of shape \(N, H, W, 3\), got float32 of shape \(12, 4, 4, 3\)\. "
        r"Store pixels 0 to 255; for floats in \[0, 1\]: np\.round\(255 \* images\)\.astype\(np\.uint8\)\.",
    ),
    "wide integers": (IMAGE.astype(np.int64), LABEL, "got int64"),
    "flat": (IMAGE.reshape(12, -1), LABEL, "Reshape them"),
    "none": (IMAGE[:0], LABEL[:0], "Store at least one image"),
    "another size": (np.zeros((12, 8, 8, 3), np.uint8), LABEL, r"\(H, W, C\) = \(4, 4, 3\), got \(8, 8, 3\)"),
    "too few labels": (IMAGE, LABEL[:-1], r"labels of 12 images must have shape \(12,\), got \(11,\)"),
    "one-hot labels": (IMAGE, np.eye(3, dtype=np.int64)[LABEL], "one class number for each image"),
    "float labels": (IMAGE, LABEL.astype(float), "labels must be integers, got float64"),
    "labels from 1": (IMAGE, LABEL + 1, "labels must be 0 to 2, got 1 to 3"),
    "negative labels": (IMAGE, LABEL - 1, "got -1 to 1"),
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


def test_the_extra_for_parquet_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"a\.parquet: .*pip install 'lightning-paf\[parquet\]'"):
        converted(tmp_path / "a.parquet")
