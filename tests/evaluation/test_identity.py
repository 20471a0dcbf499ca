import errno
import json
import os
import warnings
from contextlib import nullcontext
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from helpers import evaluation_worker
from helpers.state_fakes import HEADER, refuse, small_record
from torch import nn

from lightning_paf.attacks import PGD
from lightning_paf.evaluation.identity import Header, network_fingerprint
from lightning_paf.evaluation.samples import Samples
from lightning_paf.evaluation.state import Ledger

HEADER_FIELDS = ("model", "network", "data", "samples", "block_size", "seed", "precision", "code", "format")


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
        return Header.of(
            model or evaluation_worker.model(), PGD(eps), samples or evaluation_worker.samples(), **settings
        )

    retrained, relabelled, reordered = (
        evaluation_worker.model(),
        evaluation_worker.samples(),
        evaluation_worker.samples(),
    )
    with torch.no_grad():
        retrained[0].bias[0] += 1e-6
    x, y = relabelled.fetch(relabelled.ids)
    y = y.clone()
    y[-1] = 1 - y[-1]
    rewired = evaluation_worker.model()
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
    monkeypatch.setattr("lightning_paf.evaluation.state._PAUSE", 0.0)
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
    monkeypatch.setattr("lightning_paf.evaluation.state._PAUSE", 0.0)
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


def test_a_header_that_another_process_writes_between_two_looks_is_left_where_it_is(tmp_path):
    class Late(Ledger):
        def _read_header(self):
            found = super()._read_header()
            Ledger(tmp_path).open(replace(HEADER, seed=1))
            return found

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="seed: here 0, ledger 1"):
            Late(tmp_path).open(HEADER)
    assert [path.name for path in tmp_path.iterdir()] == ["header.json"]


@pytest.mark.parametrize("other_seed", [0, 1])
def test_a_damaged_header_that_another_process_has_mended_meanwhile_is_put_back(tmp_path, monkeypatch, other_seed):
    monkeypatch.setattr("lightning_paf.evaluation.state._PAUSE", 0.0)
    path = tmp_path / "header.json"
    path.write_bytes(b"half")
    rename = Path.rename

    def later(self, target):
        monkeypatch.setattr(Path, "rename", rename)
        path.unlink()
        Ledger(tmp_path).open(replace(HEADER, seed=other_seed))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", later)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with nullcontext() if other_seed == HEADER.seed else pytest.raises(ValueError, match="seed: here 0, ledger 1"):
            Ledger(tmp_path).open(HEADER)
    assert [path.name for path in tmp_path.iterdir()] == ["header.json"]
