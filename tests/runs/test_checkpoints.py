"""Checkpoints are written atomically, and the newest valid one is found."""

import argparse
import errno
import functools
import io
import os
import re
import shutil
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_paf.runs import checkpoints
from lightning_paf.runs.checkpoints import AtomicCheckpointIO, newest_checkpoint


def checkpoint(step: int, epochs: int = 0, **other) -> dict:
    loops = {"fit_loop": {"epoch_progress": {"current": {"processed": epochs}}}}
    return {"global_step": step, "loops": loops, "optimizer_states": [], "weights": torch.full((1000,), 1.0), **other}


def write(folder, name: str, step: int, epochs: int = 0, seconds: int = 0):
    path = folder / f"{name}.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint(step, epochs), path)
    os.utime(path, (seconds, seconds))
    return path


def test_a_checkpoint_is_written_and_read(tmp_path):
    path = tmp_path / "new" / "a.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint(3), path)
    assert AtomicCheckpointIO().load_checkpoint(path)["global_step"] == 3
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("writing failed")])
def test_a_full_disk_leaves_the_old_file(error, tmp_path, monkeypatch):
    path = write(tmp_path, "last", step=1)
    before = path.read_bytes()

    def fails(content, stream):
        stream.write(b"half of it")
        raise error

    monkeypatch.setattr(torch, "save", fails)
    message = r"last.ckpt could not be written .* Free disk space and resume with --ckpt_path auto"
    with pytest.raises(OSError, match=message):
        AtomicCheckpointIO().save_checkpoint(checkpoint(2), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_content_is_flushed_before_the_renaming_and_the_folder_after_it(tmp_path, monkeypatch):
    exists = []
    monkeypatch.setattr(checkpoints.os, "fsync", lambda handle: exists.append((tmp_path / "a.ckpt").exists()))
    write(tmp_path, "a", step=1)
    assert exists == [False, True]


def test_the_newest_has_most_steps_then_epochs_then_the_latest_time(tmp_path):
    assert newest_checkpoint([tmp_path, tmp_path / "missing"]) is None
    write(tmp_path, "older", step=5, seconds=99)
    before_validation = write(tmp_path, "step", step=6, epochs=1, seconds=50)
    assert newest_checkpoint([tmp_path]) == before_validation
    write(tmp_path, "best", step=6, epochs=2, seconds=10)
    end_of_epoch = write(tmp_path, "last", step=6, epochs=2, seconds=20)
    assert newest_checkpoint([tmp_path]) == end_of_epoch


def test_a_checkpoint_of_another_run_is_skipped(tmp_path):
    def saved(name, step, run_id):
        writer = AtomicCheckpointIO()
        writer.run_id = run_id
        writer.save_checkpoint(checkpoint(step), tmp_path / f"{name}.ckpt")

    saved("before", 2, "")
    assert newest_checkpoint([tmp_path], "a").stem == "before"
    saved("own", 4, "a")
    saved("other", 9, "b")
    assert newest_checkpoint([tmp_path]).stem == "other"
    with pytest.warns(UserWarning, match=r"other\.ckpt belongs to another run and is skipped"):
        assert newest_checkpoint([tmp_path], "a").stem == "own"
    for name in ("own", "before"):
        (tmp_path / f"{name}.ckpt").unlink()
    with pytest.raises(ValueError, match=r"other\.ckpt belongs to another run"):
        newest_checkpoint([tmp_path], "a")


def test_a_training_does_not_resume_from_weights_only(tmp_path):
    torch.save({"state_dict": {}, "global_step": 7}, tmp_path / "imported.ckpt")
    with pytest.raises(ValueError, match=r"imported.ckpt holds weights only. .* --run OTHER --model.init FILE"):
        newest_checkpoint([tmp_path])
    good = write(tmp_path, "good", step=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert newest_checkpoint([tmp_path]) == good


@functools.cache
def complete() -> bytes:
    content = io.BytesIO()
    torch.save(checkpoint(8), content)
    return content.getvalue()


@given(fraction=st.floats(0, 1, exclude_max=True), tail=st.sampled_from(["nothing", "zeros", "garbage"]))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_truncated_anywhere_is_skipped(fraction, tail, tmp_path):
    """The missing part is absent, or replaced by other bytes."""
    good, torn = write(tmp_path, "good", step=4), tmp_path / "torn.ckpt"
    length = int(fraction * len(complete()))
    rest = {"nothing": b"", "zeros": bytes(len(complete()) - length), "garbage": b"\x5a\x01" * 32}[tail]
    torn.write_bytes(complete()[:length] + rest)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = newest_checkpoint([tmp_path])
    if found == torn:  # only the redundant end is missing
        assert length > 0.99 * len(complete())
        assert torch.equal(torch.load(torn)["weights"], checkpoint(8)["weights"])
    else:
        assert found == good
        assert any("torn.ckpt is damaged" in str(warning.message) for warning in caught)


def write_arrays(path):
    with path.open("wb") as stream:
        np.savez(stream, image=np.zeros(3))


def write_archive(path):
    (path.parent / "inside").mkdir()
    (path.parent / "inside" / "a.txt").write_text("a")
    shutil.make_archive(str(path), "zip", path.parent / "inside")
    path.with_name(f"{path.name}.zip").rename(path)


def saved(content):
    return lambda path: torch.save(content, path)


def damaged(damage):
    """Write a newer checkpoint and damage its bytes."""

    def make(path):
        write(path.parent, path.stem, step=8)
        path.write_bytes(damage(path.read_bytes()))

    return make


def flip_a_bit(content: bytes) -> bytes:
    """Change one of the weights, so that the file can still be loaded."""
    index = content.index(torch.ones(8).numpy().tobytes()) + 2
    return content[:index] + bytes([content[index] ^ 1]) + content[index + 1 :]


OTHERS = {
    "zeros": lambda path: path.write_bytes(bytes(10_000)),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not found\n" * 100),
    "arrays": write_arrays,
    "archive": write_archive,
    "list": saved([1, 2]),
    "no loops": saved({"optimizer_states": [], "global_step": 9, "state_dict": {}}),
    "no step": saved({**checkpoint(9), "global_step": None}),
    "objects": saved({"state_dict": os.getcwd}),
    "truncated": damaged(lambda content: content[:-100]),
    "changed": damaged(flip_a_bit),
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_other_and_damaged_files_are_skipped_with_a_warning(make, tmp_path):
    good = write(tmp_path, "good", step=4)
    make(tmp_path / "other.ckpt")
    reason = r"(is damaged \(.*\)|holds objects .*\(posix.getcwd\))"
    with pytest.warns(UserWarning, match=rf"other.ckpt {reason} and is skipped"):
        assert newest_checkpoint([tmp_path]) == good
    good.unlink()
    with pytest.raises(ValueError, match=rf"other.ckpt {reason}. Repair or remove"):
        newest_checkpoint([tmp_path])


def unreadable(code: int):
    """A file that neither `open` nor `torch.load` can read."""

    def make(folder, monkeypatch):
        path = write(folder, "last", step=8)
        real = io.open

        def refuse(file, *args, **kwargs):
            if str(file) == str(path):
                raise OSError(code, os.strerror(code), str(file))
            return real(file, *args, **kwargs)

        monkeypatch.setattr("builtins.open", refuse)
        monkeypatch.setattr(io, "open", refuse)

    return make


def failing_once(owner, name: str):
    """A disk error in one function only: while loading, or beyond the table of contents."""

    def make(folder, monkeypatch):
        path, real = write(folder, "last", step=8), getattr(owner, name)

        def fail(file, **options):
            if str(getattr(file, "filename", file)) == str(path):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(file, **options)

        monkeypatch.setattr(owner, name, fail)

    return make


UNREADABLE = {
    "permission": (unreadable(errno.EACCES), "last.ckpt cannot be read (Permission denied)"),
    "disk": (unreadable(errno.EIO), "last.ckpt cannot be read (Input/output error)"),
    "disk, once": (failing_once(torch, "load"), "last.ckpt cannot be read (Input/output error)"),
    "disk, inside": (failing_once(zipfile.ZipFile, "testzip"), "last.ckpt cannot be read (Input/output error)"),
    "sharded": (lambda folder, _: (folder / "last.ckpt").mkdir(), "last.ckpt cannot be read (Is a directory)"),
    "link": (
        lambda folder, _: (folder / "last.ckpt").symlink_to("gone.ckpt"),
        "last.ckpt cannot be read (No such file or directory)",
    ),
    "folder is a file": (
        lambda folder, _: (folder / "checkpoints").write_text(""),
        "checkpoints cannot be read (Not a directory)",
    ),
    "folder is a dangling link": (
        lambda folder, _: (folder / "checkpoints").symlink_to("gone"),
        "checkpoints cannot be read (No such file or directory)",
    ),
}


@pytest.mark.parametrize(("make", "reason"), UNREADABLE.values(), ids=UNREADABLE)
def test_an_older_file_does_not_replace_an_unreadable_one(make, reason, tmp_path, monkeypatch):
    """The unreadable file could be the newest."""
    write(tmp_path, "older", step=4)
    make(tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=re.escape(reason)):
        newest_checkpoint([tmp_path, tmp_path / "checkpoints"])


def test_numpy_numbers_are_saved_as_plain_ones(tmp_path):
    state = {"best": np.float64(0.25), "steps": [np.int64(3), (np.bool_(True), "x")], np.int64(5): np.float32(0.5)}
    saved = {"state": OrderedDict(state), "weights": {"a": torch.ones(1)}}
    AtomicCheckpointIO().save_checkpoint(saved, tmp_path / "a.ckpt")
    found = AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt", weights_only=True)["state"]
    assert found == state
    assert type(found) is OrderedDict
    assert [type(found["best"]), type(found["steps"][0]), type(found["steps"][1][0])] == [float, int, bool]
    assert type(saved["state"]["best"]) is np.float64, "the callback's state was changed"


class Local:
    """An object that can be pickled and is not a plain value."""


OBJECTS = {
    "pathlib.PosixPath": Path("a"),
    "argparse.Namespace": argparse.Namespace(a=1),
    "numpy.ndarray": np.zeros(2),
    f"{__name__}.Local": Local(),
    "function": lambda: None,
}


@pytest.mark.parametrize(("kind", "value"), OBJECTS.items(), ids=OBJECTS)
@pytest.mark.parametrize("key", ["['best']", "[0]", ""])
def test_an_object_is_refused_when_it_is_saved(kind, value, key, tmp_path):
    good = write(tmp_path, "last", step=1)
    before = good.read_bytes()
    state = {"['best']": {"first": 1, "best": value}, "[0]": [value, 1], "": value}[key]
    where = re.escape(f"checkpoint['callbacks']['Mine']{key}")
    with pytest.raises(ValueError, match=rf"got {re.escape(kind)} at {where}, .* Return a plain value"):
        AtomicCheckpointIO().save_checkpoint(checkpoint(2, callbacks={"Other": 1, "Mine": state}), good)
    assert good.read_bytes() == before
    assert list(tmp_path.iterdir()) == [good]
