import errno
import os
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.state_fakes import HEADER, refuse, small_record

from lightning_paf.evaluation import record as record_file
from lightning_paf.evaluation.state import Ledger, MemoryLedger
from lightning_paf.utils.files import create_whole, write_whole

# ---- many records ----


def test_records_are_kept_by_block_and_stage(ledger):
    assert ledger.read(0, 1) is None
    for block, stage in [(1, 0), (0, 1), (0, 0)]:
        ledger.write(replace(small_record(block), stage=stage, x_adv=small_record().x_adv[: min(stage, 1)]))
    assert ledger.recorded() == [(0, 0), (0, 1), (1, 0)]
    assert ledger.read(1, 0).block == 1
    assert ledger.read(1, 1) is None


def test_of_two_records_for_one_place_the_first_counts(ledger):
    first = ledger.write(small_record(seconds=1.0))
    second = ledger.write(small_record(seconds=2.0))
    assert first.note == second.note == {"s": 1.0}


def test_the_digest_sees_every_finding_and_no_note(ledger):
    other = MemoryLedger()
    other.open(HEADER)
    digests = {ledger.digest()}
    for block in (0, 1):
        ledger.write(small_record(block, seconds=1.0))
        digests.add(ledger.digest())
    assert len(digests) == 3
    for block in (1, 0):
        other.write(small_record(block, seconds=2.0))
    assert other.digest() == ledger.digest() != ledger.digest(blocks=1)
    other.write(small_record(2))
    assert other.digest(blocks=2) == ledger.digest()


def test_a_record_under_the_name_of_another_does_not_count(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.write(small_record(0))
    shutil.copy(tmp_path / "block-00000.stage-1.record", tmp_path / "block-00007.stage-1.record")
    assert ledger.recorded() == [(0, 1), (7, 1)]
    assert ledger.read(7, 1) is None


def test_a_damaged_record_is_moved_aside_and_written_again(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.write(small_record())
    path = tmp_path / "block-00000.stage-1.record"
    path.write_bytes(path.read_bytes()[:-1])
    assert ledger.read(0, 1) is None
    with pytest.warns(UserWarning, match=r"stage-1\.record does not count: it is damaged"):
        ledger.write(small_record())
    assert ledger.read(0, 1) is not None
    (aside,) = tmp_path.glob("*.aside")
    assert len(aside.read_bytes()) == len(path.read_bytes()) - 1


def test_a_damaged_record_that_cannot_be_moved_is_overwritten(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path)
    path = tmp_path / "block-00000.stage-1.record"
    path.write_bytes(b"half")
    monkeypatch.setattr(Path, "rename", refuse(errno.EPERM))
    with pytest.warns(UserWarning, match="does not count"):
        ledger.write(small_record())
    assert ledger.read(0, 1) is not None
    assert not list(tmp_path.glob("*.aside"))


def test_a_file_larger_than_any_record_is_not_read(tmp_path):
    with (tmp_path / "block-00000.stage-1.record").open("wb") as stream:
        stream.truncate(record_file.LARGEST + 1)  # a sparse file
    assert Ledger(tmp_path).read(0, 1) is None


def test_what_a_killed_process_left_half_written_is_swept_away(tmp_path):
    ledger = Ledger(tmp_path)
    mine, other = (tmp_path / f"block-0000{block}.stage-1.record.ab12.partial" for block in (0, 1))
    for path in (mine, other):
        path.write_bytes(b"half")
    with ledger.lease(0):
        assert not mine.exists()
        assert other.exists()


def test_a_writer_whose_half_written_file_was_swept_away_writes_again(tmp_path, monkeypatch):
    replaced = Path.replace
    calls = []

    def swept(self, target):
        calls.append(self)
        if len(calls) == 1:
            self.unlink()
        return replaced(self, target)

    monkeypatch.setattr(Path, "replace", swept)
    Ledger(tmp_path).write(small_record())
    assert len(calls) == 2
    assert Ledger(tmp_path).read(0, 1) is not None


def test_a_record_that_another_process_writes_between_two_looks_is_not_called_damaged(tmp_path):
    class Late(Ledger):
        def _load(self, block, stage):
            found = super()._load(block, stage)
            if found is None:
                Ledger(tmp_path).write(small_record(block))
            return found

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Late(tmp_path).write(small_record())
    assert [path.name for path in tmp_path.iterdir()] == ["block-00000.stage-1.record"]


# ---- folders that do not work ----


REPAIRS = {
    errno.ENOSPC: "Free some space",
    errno.EROFS: "may write to",
    errno.EACCES: "may write to",
    errno.EIO: "again",
}


@pytest.mark.parametrize(("code", "repair"), REPAIRS.items())
@pytest.mark.parametrize("where", ["os.fsync", "pathlib.Path.replace"])
def test_a_record_that_cannot_be_written_says_how_to_go_on(tmp_path, monkeypatch, code, repair, where):
    ledger = Ledger(tmp_path / "ledger")
    ledger.open(HEADER)
    ledger.write(small_record(0))
    before = ledger.digest()
    monkeypatch.setattr(where, refuse(code))
    with pytest.raises(ValueError, match=rf"ledger cannot serve as a ledger: .*\. .*{repair}"):
        ledger.write(small_record(1))
    monkeypatch.undo()
    assert ledger.digest() == before
    assert not list(ledger.folder.glob("*.partial"))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_lease_that_cannot_be_written_says_how_to_go_on(tmp_path, monkeypatch, code):
    ledger = Ledger(tmp_path)
    monkeypatch.setattr(Path, "open", refuse(code))
    with pytest.raises(ValueError, match=REPAIRS[code]):
        ledger.lease(0)


def test_a_lease_on_a_disk_that_fills_up_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", refuse(errno.ENOSPC))
    with pytest.raises(ValueError, match="Free some space"):
        Ledger(tmp_path).lease(0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_file_is_no_folder(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="Give the path of a folder"):
        Ledger(tmp_path / name).open(HEADER)


@pytest.mark.parametrize("links", [True, False])
def test_a_file_is_created_once(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", refuse(errno.EOPNOTSUPP))
    path = tmp_path / "file"
    assert create_whole(path, b"first")
    assert not create_whole(path, b"second")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_whole(path, b"old")
    monkeypatch.setattr(os, "fsync", refuse(errno.ENOSPC))
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_time_out_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="such as 120"):
        Ledger(tmp_path, timeout=0)


def test_a_whole_ledger_can_be_read_where_nothing_can_be_written(tmp_path, monkeypatch):
    Ledger(tmp_path).open(HEADER)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("os.fsync", "os.link", "pathlib.Path.replace", "pathlib.Path.rename"):
            monkeypatch.setattr(name, refuse(errno.EROFS))
        Ledger(tmp_path).open(HEADER)
