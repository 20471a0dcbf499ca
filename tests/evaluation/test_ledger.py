import errno
import json
import os
import shutil
import warnings
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import ledger_worker
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_paf.attacks import PGD
from lightning_paf.evaluation import record as record_file
from lightning_paf.evaluation.files import create_whole, write_whole
from lightning_paf.evaluation.header import Header, network_fingerprint
from lightning_paf.evaluation.ledger import Ledger, MemoryLedger
from lightning_paf.evaluation.record import DamagedRecord, Record, decode, encode
from lightning_paf.evaluation.samples import Samples

HEADER = Header("m", "n", "d", 8, {"eps": "8/255"}, [{"label": "pgd", "steps": 10}], 4, 0, "fp32", "c")
HEADER_FIELDS = ("model", "network", "data", "samples", "block_size", "seed", "precision", "code", "format")


def small_record(block=0, stage=1, after="a", seconds=1.0) -> Record:
    labels = np.array([0, 1, 2])
    x_adv = np.full((1, 1, 1, 1), 0.5, np.float32)
    predictions = np.array([0, 2, 2])
    return Record(block, stage, "pgd", 5, after, np.arange(3), labels, predictions, x_adv, 30, 20, 10, {"s": seconds})


BYTES = encode(small_record())


@pytest.fixture(params=["folder", "memory"])
def ledger(request, tmp_path):
    ledger = Ledger(tmp_path / "ledger") if request.param == "folder" else MemoryLedger()
    ledger.open(HEADER)
    return ledger


# ---- one record ----


def test_a_record_comes_back_as_it_was():
    again, original = decode(BYTES), small_record()
    for name in ("ids", "labels", "predictions", "x_adv"):
        assert np.array_equal(getattr(again, name), getattr(original, name))
        assert getattr(again, name).dtype == getattr(original, name).dtype
    assert replace(again, ids=0, labels=0, predictions=0, x_adv=0, fingerprint="").__dict__ == (
        replace(original, ids=0, labels=0, predictions=0, x_adv=0).__dict__
    )
    assert again.fooled.tolist() == [False, True, False]


def test_the_fingerprint_is_of_the_findings_not_of_who_found_them():
    other_worker, other_finding = small_record(seconds=2.0), small_record(after="b")
    assert decode(encode(other_worker)).fingerprint == decode(BYTES).fingerprint
    assert decode(encode(other_finding)).fingerprint != decode(BYTES).fingerprint


def test_a_record_cut_off_anywhere_is_damaged():
    for length in range(len(BYTES)):
        with pytest.raises(DamagedRecord):
            decode(BYTES[:length])
    with pytest.raises(DamagedRecord):
        decode(BYTES + b"\0")


@settings(deadline=None, max_examples=10)
@given(st.integers(1, 255))
def test_a_record_with_any_byte_changed_is_damaged(flip):
    for place in range(len(BYTES)):
        changed = bytearray(BYTES)
        changed[place] ^= flip
        with pytest.raises(DamagedRecord):
            decode(bytes(changed))


@given(st.binary(max_size=200))
def test_other_bytes_are_no_record(data):
    with pytest.raises(DamagedRecord):
        decode(data)
    with pytest.raises(DamagedRecord):
        decode(record_file.MAGIC + data)


def test_declared_sizes_are_not_believed():
    huge = record_file.MAGIC + (2**62).to_bytes(8, "little") + BYTES[len(record_file.MAGIC) + 8 :]
    with pytest.raises(DamagedRecord, match="should have"):
        decode(huge)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("labels", np.arange(2)),
        ("predictions", np.array([0, 1, 2])),  # none fooled, one image
        ("block", 1.5),
        ("label", None),
        ("x_adv", np.zeros((0, 1, 1, 1), np.float32)),
    ],
)
def test_a_frame_around_nonsense_is_damaged(field, value):
    with pytest.raises(DamagedRecord):
        decode(encode(replace(small_record(), **{field: value})))


def test_a_record_too_large_to_be_read_is_not_written(monkeypatch):
    monkeypatch.setattr(record_file, "LARGEST", 100)
    with pytest.raises(ValueError, match="smaller block size"):
        encode(small_record())


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


# ---- the header ----


def changed(value):
    return value + 1 if isinstance(value, int) else value + "x"


@pytest.mark.parametrize("field", HEADER_FIELDS)
def test_a_ledger_of_something_else_names_the_difference(ledger, field):
    other = replace(HEADER, **{field: changed(getattr(HEADER, field))})
    here, there = getattr(other, field), getattr(HEADER, field)
    with pytest.raises(ValueError, match=f"another evaluation: {field}: here {here}, ledger {there}. Give another"):
        ledger.open(other)
    ledger.open(HEADER)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"attack": {"eps": "4/255"}}, "attack.eps: here 4/255, ledger 8/255"),
        ({"attack": {"eps": "8/255", "norm": "l2"}}, "attack.norm: here l2, ledger nothing"),
        ({"stages": [{"label": "pgd", "steps": 20}]}, "stages.0.steps: here 20, ledger 10"),
        ({"stages": [*HEADER.stages, {"label": "fab"}]}, "stages.1.label: here fab, ledger nothing"),
    ],
)
def test_another_attack_is_named_by_its_settings(ledger, change, name):
    with pytest.raises(ValueError, match=name):
        ledger.open(replace(HEADER, **change))


def test_every_difference_is_named(ledger):
    with pytest.raises(ValueError, match="seed: here 9, ledger 0") as caught:
        ledger.open(replace(HEADER, seed=9, code="d"))
    assert "code: here d, ledger c" in str(caught.value)


def test_every_field_of_the_header_is_compared():
    assert {*HEADER_FIELDS, "attack", "stages"} == set(HEADER.content())


def test_the_header_depends_on_everything_that_the_verdict_depends_on():
    def header(model=None, eps=Fraction(8, 255), samples=None, **settings) -> Header:
        settings = {"seed": 0, "block_size": 4, "precision": "fp32"} | settings
        return Header.of(model or ledger_worker.model(), PGD(eps), samples or ledger_worker.samples(), **settings)

    retrained, relabelled, reordered = ledger_worker.model(), ledger_worker.samples(), ledger_worker.samples()
    with torch.no_grad():
        retrained[0].bias[0] += 1e-6
    x, y = relabelled.fetch(relabelled.ids)
    y = y.clone()
    y[-1] = 1 - y[-1]
    rewired = ledger_worker.model()
    rewired[1] = nn.SiLU()  # has no state
    base = header().content()

    def differs(**change):
        return {field for field, value in header(**change).content().items() if value != base[field]}

    assert differs() == set()
    assert differs(model=retrained) == {"model"}
    assert differs(model=rewired) == {"network"}
    assert differs(samples=Samples.of(x, y)) == {"data"}
    assert differs(samples=Samples(reordered.ids[::-1].copy(), reordered.fetch)) == {"data"}
    assert differs(samples=Samples(reordered.ids[:-1], reordered.fetch)) == {"data", "samples"}
    assert differs(eps=Fraction(4, 255)) == {"attack", "stages"}
    for name, value in {"seed": 1, "block_size": 5, "precision": "bf16"}.items():
        assert differs(**{name: value}) == {name}


def test_a_network_is_more_than_its_checkpoint():
    class Net(nn.Module):
        def __init__(self, mean, function):
            super().__init__()
            self.register_buffer("mean", torch.tensor(mean), persistent=False)
            self.function = function

        def extra_repr(self):
            return str(self.function)

    def here(x):
        return x

    assert network_fingerprint(Net(0.0, here)) != network_fingerprint(Net(0.5, here))
    address = "<function f at 0x7f{}>".format
    assert network_fingerprint(Net(0.0, address("00"))) == network_fingerprint(Net(0.0, address("11")))


def test_a_header_that_is_cut_off_anywhere_is_written_again(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_paf.evaluation.ledger._PAUSE", 0.0)
    ledger = Ledger(tmp_path)
    ledger.open(HEADER)
    clean = replace(small_record(after=HEADER.fingerprint), stage=0, x_adv=small_record().x_adv[:0])
    ledger.write(clean)
    path = tmp_path / "header.json"
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:length])
        with pytest.warns(UserWarning, match=r"header\.json does not count: it is damaged"):
            ledger.open(HEADER)
        assert path.read_bytes() == whole
    path.write_bytes(whole[:-30])
    with pytest.raises(ValueError, match="records of another evaluation"):
        ledger.open(replace(HEADER, seed=1))


def test_a_header_with_a_changed_value_is_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_paf.evaluation.ledger._PAUSE", 0.0)
    Ledger(tmp_path).open(HEADER)
    path = tmp_path / "header.json"
    content = json.loads(path.read_text())
    content["header"]["seed"] = 1
    path.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="damaged"):
        Ledger(tmp_path).open(HEADER)


def test_without_hard_links_the_header_is_written_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", refuse(errno.EOPNOTSUPP))
    Ledger(tmp_path).open(HEADER)
    monkeypatch.undo()
    Ledger(tmp_path).open(HEADER)
    assert [path.name for path in tmp_path.iterdir()] == ["header.json"]


def test_of_two_that_begin_at_once_the_second_finds_the_header_of_the_first(tmp_path, monkeypatch):
    link = os.link

    def slower(source, target):
        monkeypatch.setattr(os, "link", link)
        Ledger(tmp_path).open(replace(HEADER, seed=1))
        link(source, target)

    monkeypatch.setattr(os, "link", slower)
    with pytest.raises(ValueError, match="seed: here 0, ledger 1"):
        Ledger(tmp_path).open(HEADER)
    assert [path.name for path in tmp_path.iterdir()] == ["header.json"]


# ---- folders that do not work ----


def refuse(code):
    def refused(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    return refused


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
