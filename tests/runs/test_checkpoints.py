"""Checkpoints are written as a whole or not at all, and the newest that is whole is found."""

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


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "new" / "a.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint(3), path)
    assert AtomicCheckpointIO().load_checkpoint(path)["global_step"] == 3
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("writing failed")])
def test_a_full_disk_leaves_the_old_one(error, tmp_path, monkeypatch):
    path = write(tmp_path, "last", step=1)
    before = path.read_bytes()

    def breaks(content, stream):
        stream.write(b"half of it")
        raise error

    monkeypatch.setattr(torch, "save", breaks)
    with pytest.raises(
        OSError, match=r"last.ckpt could not be written .* Free disk space and resume with --ckpt_path auto"
    ):
        AtomicCheckpointIO().save_checkpoint(checkpoint(2), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_it_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(checkpoints.os, "fsync", lambda handle: seen.append((tmp_path / "a.ckpt").exists()))
    write(tmp_path, "a", step=1)
    assert seen == [False, True], "the content before the renaming, the folder after it"


def test_nothing_is_the_newest_of_nothing(tmp_path):
    assert newest_checkpoint([tmp_path, tmp_path / "missing"]) is None


def test_the_newest_by_step_then_epochs_then_time(tmp_path):
    write(tmp_path, "older", step=5, seconds=99)
    before_validation = write(tmp_path, "step", step=6, epochs=1, seconds=50)
    assert newest_checkpoint([tmp_path]) == before_validation
    write(tmp_path, "best", step=6, epochs=2, seconds=10)
    end_of_epoch = write(tmp_path, "last", step=6, epochs=2, seconds=20)
    assert newest_checkpoint([tmp_path]) == end_of_epoch


def test_weights_alone_do_not_continue_a_training(tmp_path):
    torch.save({"state_dict": {}, "global_step": 7}, tmp_path / "imported.ckpt")
    with pytest.raises(ValueError, match=r"imported.ckpt holds weights only. .* --run OTHER --model.init FILE"):
        newest_checkpoint([tmp_path])
    good = write(tmp_path, "good", step=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert newest_checkpoint([tmp_path]) == good


@functools.cache
def whole_file() -> bytes:
    content = io.BytesIO()
    torch.save(checkpoint(8), content)
    return content.getvalue()


@given(share=st.floats(0, 1, exclude_max=True), tail=st.sampled_from(["nothing", "zeros", "garbage"]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_torn_anywhere_it_is_left_out(share, tail, tmp_path):
    """A part of the file, with or without what the disk held there before."""
    good, torn = write(tmp_path, "good", step=4), tmp_path / "torn.ckpt"
    length = int(share * len(whole_file()))
    rest = {"nothing": b"", "zeros": bytes(len(whole_file()) - length), "garbage": b"\x5a\x01" * 32}[tail]
    torn.write_bytes(whole_file()[:length] + rest)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = newest_checkpoint([tmp_path])
    if found == torn:  # only the very end is missing, which repeats what stands before it
        assert length > 0.99 * len(whole_file())
        assert torch.equal(torch.load(torn)["weights"], checkpoint(8)["weights"])
    else:
        assert found == good
        assert any("torn.ckpt is damaged" in str(warning.message) for warning in told)


def a_zip_of_arrays(path):
    with path.open("wb") as stream:
        np.savez(stream, image=np.zeros(3))


def an_archive(path):
    (path.parent / "inside").mkdir()
    (path.parent / "inside" / "a.txt").write_text("a")
    shutil.make_archive(str(path), "zip", path.parent / "inside")
    path.with_name(f"{path.name}.zip").rename(path)


def saved(content):
    return lambda path: torch.save(content, path)


OTHERS = {
    "zeros": lambda path: path.write_bytes(bytes(10_000)),
    "text": lambda path: path.write_text("not found\n" * 100),
    "arrays": a_zip_of_arrays,
    "archive": an_archive,
    "list": saved([1, 2]),
    "number": saved(7),
    "nothing": saved({}),
    "no loops": saved({"optimizer_states": [], "global_step": 9, "state_dict": {}}),
    "no step": saved({**checkpoint(9), "global_step": None}),
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_what_holds_no_training_is_named_and_left_out(make, tmp_path):
    good = write(tmp_path, "good", step=4)
    make(tmp_path / "other.ckpt")
    with pytest.warns(UserWarning, match=r"other.ckpt is damaged .* is skipped"):
        assert newest_checkpoint([tmp_path]) == good
    good.unlink()
    with pytest.raises(ValueError, match=r"other.ckpt is damaged \(.*\). Repair or remove"):
        newest_checkpoint([tmp_path])


def test_objects_are_named_and_left_out(tmp_path):
    good = write(tmp_path, "good", step=4)
    torch.save({"state_dict": os.getcwd}, tmp_path / "other.ckpt")
    with pytest.warns(UserWarning, match=r"other.ckpt holds objects .*\(posix.getcwd\) and is skipped"):
        assert newest_checkpoint([tmp_path]) == good
    good.unlink()
    with pytest.raises(ValueError, match=r"other.ckpt holds objects .*\(posix.getcwd\). Repair or remove"):
        newest_checkpoint([tmp_path])


def denied(code: int):
    """A file that cannot be read, whoever asks, by `open` or by `torch.load`."""

    def make(folder, monkeypatch):
        path = write(folder, "last", step=8)
        real = io.open

        def refusing(file, *args, **kwargs):
            if str(file) == str(path):
                raise OSError(code, os.strerror(code), str(file))
            return real(file, *args, **kwargs)

        monkeypatch.setattr("builtins.open", refusing)
        monkeypatch.setattr(io, "open", refusing)

    return make


def breaking_inside(folder, monkeypatch):
    """A disk that fails behind the table of contents, which is what `torch.load` reads."""
    path = write(folder, "last", step=8)
    real = zipfile.ZipFile.testzip

    def testzip(archive):
        if archive.filename == str(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(archive)

    monkeypatch.setattr(zipfile.ZipFile, "testzip", testzip)


def breaking_load(folder, monkeypatch):
    """One error of the disk, gone when somebody looks again."""
    path = write(folder, "last", step=8)
    real = torch.load

    def load(file, **options):
        if file == path:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(file, **options)

    monkeypatch.setattr(torch, "load", load)


UNREADABLE = {
    "permission": (denied(errno.EACCES), "last.ckpt cannot be read (Permission denied)"),
    "disk": (denied(errno.EIO), "last.ckpt cannot be read (Input/output error)"),
    "disk, once": (breaking_load, "last.ckpt cannot be read (Input/output error)"),
    "disk, inside": (breaking_inside, "last.ckpt cannot be read (Input/output error)"),
    "stale handle": (denied(errno.ESTALE), "last.ckpt cannot be read (Stale file handle)"),
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
def test_what_cannot_be_read_is_not_taken_for_damage(make, reason, tmp_path, monkeypatch):
    """An older file is not used in its place: the unreadable one may be the newest."""
    write(tmp_path, "older", step=4)
    make(tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=re.escape(reason)):
        newest_checkpoint([tmp_path, tmp_path / "checkpoints"])


def test_numpy_numbers_are_saved_as_plain_ones(tmp_path):
    state = {"best": np.float64(0.25), "steps": [np.int64(3), (np.bool_(True), "x")], np.int64(5): np.float32(0.5)}
    kept = {"state": OrderedDict(state), "weights": {"a": torch.ones(1)}}
    AtomicCheckpointIO().save_checkpoint(kept, tmp_path / "a.ckpt")
    found = AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt", weights_only=True)["state"]
    assert found == state
    assert type(found) is OrderedDict
    assert [type(found["best"]), type(found["steps"][0]), type(found["steps"][1][0])] == [float, int, bool]
    assert type(kept["state"]["best"]) is np.float64, "the callback's own state was changed"


class Local:
    """Can be pickled, and is no plain value."""


FOREIGN = {
    "pathlib.PosixPath": Path("a"),
    "argparse.Namespace": argparse.Namespace(a=1),
    "numpy.ndarray": np.zeros(2),
    "numpy.longdouble": np.longdouble(1),
    f"{__name__}.Local": Local(),
    "function": lambda: None,
    "builtin_function_or_method": os.getcwd,
}


@pytest.mark.parametrize(("kind", "value"), FOREIGN.items(), ids=FOREIGN)
@pytest.mark.parametrize("place", ["['best']", "[0]", "itself"])
def test_a_state_that_could_not_be_loaded_is_refused_when_it_is_saved(kind, value, place, tmp_path):
    good = write(tmp_path, "last", step=1)
    before = good.read_bytes()
    state = {"['best']": {"first": 1, "best": value}, "[0]": [value, 1], "itself": value}[place]
    where = f"checkpoint['callbacks']['Mine']{'' if place == 'itself' else place}"
    with pytest.raises(ValueError, match=rf"got {re.escape(kind)} at {re.escape(where)}: .* Return a plain value"):
        AtomicCheckpointIO().save_checkpoint(checkpoint(2, callbacks={"Other": 1, "Mine": state}), good)
    assert good.read_bytes() == before
    assert list(tmp_path.iterdir()) == [good]


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def empty(path):
    path.write_bytes(b"")


def change(path):
    """One number among the weights: the file can still be read."""
    content = bytearray(path.read_bytes())
    place = content.index(torch.ones(8).numpy().tobytes())
    content[place + 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, empty, change])
def test_a_damaged_file_is_named_and_the_one_before_is_used(damage, tmp_path):
    good = write(tmp_path, "good", step=4)
    damage(write(tmp_path, "torn", step=8))
    with pytest.warns(UserWarning, match=r"torn.ckpt is damaged .* is skipped"):
        assert newest_checkpoint([tmp_path]) == good
