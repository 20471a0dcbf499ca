"""Evaluation state in a folder and in memory."""

import errno
import os
import shutil
import warnings
from pathlib import Path

import pytest
from helpers.state_fakes import IDENTITY, fingerprints, refuse, small_record

from lightning_paf.evaluation import EvaluationState
from lightning_paf.evaluation import state as state_file
from lightning_paf.utils.files import create_whole

NAME = "block-00000.sub-attack-1.record"


def test_records_are_kept_by_block_and_sub_attack(state):
    assert state.read(0, 1) is None
    for key in [(1, 0), (0, 1), (0, 0)]:
        state.write(small_record(*key))
    assert state.recorded() == [(0, 0), (0, 1), (1, 0)]
    assert state.read(1, 0).block == 1
    assert state.read(1, 1) is None


def test_the_first_of_two_equal_records_counts(state):
    first = state.write(small_record(seconds=1.0))
    second = state.write(small_record(seconds=2.0))
    assert first.note == second.note == {"s": 1.0}


def test_a_record_with_the_name_of_another_is_invalid(tmp_path):
    state = EvaluationState(tmp_path)
    state.write(small_record(0))
    shutil.copy(tmp_path / NAME, tmp_path / NAME.replace("00000", "00007"))
    assert state.recorded() == [(0, 1), (7, 1)]
    assert state.read(7, 1) is None


@pytest.mark.parametrize("content", [b"", b"half", b"pafrec1\n" + bytes(100)])
def test_a_damaged_record_is_replaced(tmp_path, content):
    state = EvaluationState(tmp_path)
    (tmp_path / NAME).write_bytes(content)
    assert state.read(0, 1) is None
    with pytest.warns(UserWarning, match=r"sub-attack-1\.record is damaged"):
        state.write(small_record())
    assert state.read(0, 1) is not None


def test_a_file_larger_than_any_record_is_not_read(tmp_path):
    with (tmp_path / NAME).open("wb") as stream:
        stream.truncate(state_file.MAX_BYTES + 1)  # a sparse file
    assert EvaluationState(tmp_path).read(0, 1) is None


def test_partial_files_of_a_killed_process_are_removed(tmp_path):
    mine, other = (tmp_path / f"block-0000{block}.sub-attack-1.record.ab12.partial" for block in (0, 1))
    for path in (mine, other):
        path.write_bytes(b"half")
    with EvaluationState(tmp_path).claim(0):
        assert not mine.exists()
        assert other.exists()


def test_a_process_whose_partial_file_was_removed_writes_again(tmp_path, monkeypatch):
    link, calls = os.link, []

    def removed(source, target):
        calls.append(source)
        if len(calls) == 1:
            source.unlink()
        link(source, target)

    monkeypatch.setattr(os, "link", removed)
    EvaluationState(tmp_path).write(small_record())
    assert len(calls) == 2
    assert EvaluationState(tmp_path).read(0, 1) is not None


def test_the_record_of_a_faster_process_counts(tmp_path):
    class Late(EvaluationState):
        def _load(self, block, sub_attack):
            found = super()._load(block, sub_attack)
            if found is None:
                EvaluationState(tmp_path).write(small_record(block, seconds=7.0))
            return found

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Late(tmp_path).write(small_record()).note == {"s": 7.0}
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


REPAIRS = {
    errno.ENOSPC: "Free some space",
    errno.EROFS: "may write to",
    errno.EACCES: "may write to",
    errno.EIO: "again",
}


@pytest.mark.parametrize(("code", "repair"), REPAIRS.items())
def test_a_record_that_cannot_be_written_explains_the_repair(tmp_path, monkeypatch, code, repair):
    state = EvaluationState(tmp_path / "mine")
    state.open(IDENTITY)
    state.write(small_record(0))
    before = fingerprints(state)
    monkeypatch.setattr(os, "fsync", refuse(code))
    with pytest.raises(ValueError, match=rf"mine cannot be used as a state folder: .*\. .*{repair}"):
        state.write(small_record(1))
    with pytest.raises(ValueError, match=repair):
        state.claim(1)
    monkeypatch.undo()
    assert fingerprints(state) == before
    assert {path.name for path in state.folder.iterdir()} == {NAME, "identity.json"}


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_file_instead_of_a_folder_is_refused(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="Pass the path of a folder"):
        EvaluationState(tmp_path / name).open(IDENTITY)


@pytest.mark.parametrize("links", [True, False])
def test_a_file_is_created_once(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", refuse(errno.EOPNOTSUPP))
    path = tmp_path / "file"
    assert create_whole(path, b"first")
    assert not create_whole(path, b"second")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_timeout_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="such as 120"):
        EvaluationState(tmp_path, timeout=0)


def test_a_complete_state_can_be_read_in_a_read_only_folder(tmp_path, monkeypatch):
    EvaluationState(tmp_path).open(IDENTITY)
    for name in ("os.fsync", "os.link", "pathlib.Path.replace", "pathlib.Path.rename"):
        monkeypatch.setattr(name, refuse(errno.EROFS))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EvaluationState(Path(tmp_path)).open(IDENTITY)
