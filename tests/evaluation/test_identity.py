"""Identity of an evaluation, and states of other evaluations."""

import errno
import json
import os
import warnings
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from helpers.evaluation_worker import evaluation, model, samples
from helpers.state_fakes import IDENTITY, refuse
from torch import nn

from lightning_paf.attacks import PGD
from lightning_paf.evaluation import EvaluationState, MemoryState, Samples
from lightning_paf.evaluation.identity import network_fingerprint

FIELDS = ("model", "network", "data", "samples", "block_size", "seed", "precision", "code", "format")


def changed(value):
    return value + 1 if isinstance(value, int) else value + "x"


@pytest.mark.parametrize("field", FIELDS)
def test_a_state_of_another_evaluation_names_the_difference(state, field):
    other = replace(IDENTITY, **{field: changed(getattr(IDENTITY, field))})
    here, there = getattr(other, field), getattr(IDENTITY, field)
    with pytest.raises(
        ValueError, match=f"same evaluation, got: {field} is {here} here, {there} in the state. Pass another"
    ):
        state.open(other)
    state.open(IDENTITY)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"attack": {"eps": "4/255"}}, "attack.eps is 4/255 here, 8/255 in the state"),
        ({"attack": {"eps": "8/255", "norm": "l2"}}, "attack.norm is l2 here, missing in the state"),
        ({"sub_attacks": [{"label": "pgd", "steps": 20}]}, "sub_attacks.0.steps is 20 here, 10 in the state"),
        (
            {"sub_attacks": [*IDENTITY.sub_attacks, {"label": "fab"}]},
            "sub_attacks.1.label is fab here, missing in the state",
        ),
        ({"code": "d", "seed": 9}, "code is d here, c in the state; seed is 9 here, 0 in the state"),
    ],
)
def test_every_difference_is_named(state, change, name):
    with pytest.raises(ValueError, match=name):
        state.open(replace(IDENTITY, **change))


def test_every_field_of_the_identity_is_compared():
    assert {*FIELDS, "attack", "sub_attacks"} == set(IDENTITY.content())


def test_the_identity_includes_everything_that_the_result_depends_on():
    retrained, rewired, reordered = model(), model(), samples()
    with torch.no_grad():
        retrained[0].bias[0] += 1e-6
    rewired[1] = nn.SiLU()  # has no state
    x, y = samples().fetch(samples().ids)
    y = y.clone()
    y[-1] = 1 - y[-1]
    base = evaluation(attack=PGD()).identity.content()

    def differs(**change):
        content = evaluation(**{"attack": PGD(), **change}).identity.content()
        return {field for field, value in content.items() if value != base[field]}

    assert differs() == set()
    assert differs(model=retrained) == {"model"}
    assert differs(model=rewired) == {"network"}
    assert differs(samples=Samples.of(x, y)) == {"data"}
    assert differs(samples=Samples(reordered.ids[::-1].copy(), reordered.fetch)) == {"data"}
    assert differs(samples=Samples(reordered.ids[:-1], reordered.fetch)) == {"data", "samples"}
    assert differs(attack=PGD(Fraction(4, 255))) == {"attack", "sub_attacks"}
    for name, value in {"seed": 1, "block_size": 5, "precision": "bf16"}.items():
        assert differs(**{name: value}) == {name}


def test_the_identity_of_the_result_is_independent_of_the_code():
    assert replace(IDENTITY, code="d", format=9).of_result(None) == IDENTITY.of_result(None)
    assert IDENTITY.of_result("time") != IDENTITY.of_result(None) != replace(IDENTITY, seed=1).of_result(None)


def test_the_network_fingerprint_covers_more_than_the_checkpoint():
    class Net(nn.Module):
        def __init__(self, mean, function):
            super().__init__()
            self.register_buffer("mean", torch.tensor(mean), persistent=False)
            self.function = function

        def extra_repr(self):
            return str(self.function)

    assert network_fingerprint(Net(0.0, abs)) != network_fingerprint(Net(0.5, abs))
    address = "<function f at 0x7f{}>".format
    assert network_fingerprint(Net(0.0, address("00"))) == network_fingerprint(Net(0.0, address("11")))


def test_a_state_of_another_model_is_refused():
    state, other = MemoryState(), model()
    evaluation().run(state)
    with torch.no_grad():
        other[3].bias += 1
    with pytest.raises(ValueError, match="must belong to the same evaluation, got: model is"):
        evaluation(model=other).run(state)


def test_a_truncated_identity_is_rewritten(tmp_path):
    state, path = EvaluationState(tmp_path), tmp_path / "identity.json"
    state.open(IDENTITY)
    data = path.read_bytes()
    for length in range(0, len(data) - 1, 20):
        path.write_bytes(data[:length])
        with pytest.warns(UserWarning, match=r"identity\.json is damaged"):
            state.open(IDENTITY)
        assert path.read_bytes() == data
    path.write_text(json.dumps({**json.loads(data), "seed": 1}))
    with pytest.raises(ValueError, match="seed is 0 here, 1 in the state"):
        state.open(IDENTITY)


def test_without_hard_links_the_identity_is_written_in_place(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", refuse(errno.EOPNOTSUPP))
    EvaluationState(tmp_path).open(IDENTITY)
    monkeypatch.undo()
    EvaluationState(tmp_path).open(IDENTITY)
    assert [path.name for path in tmp_path.iterdir()] == ["identity.json"]


@pytest.mark.parametrize("other", [replace(IDENTITY, seed=1), IDENTITY])
def test_concurrent_processes_use_the_first_identity(tmp_path, monkeypatch, other):
    link = os.link

    def slower(source, target):
        monkeypatch.setattr(os, "link", link)
        EvaluationState(tmp_path).open(other)
        link(source, target)

    monkeypatch.setattr(os, "link", slower)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if other is IDENTITY:
            EvaluationState(tmp_path).open(IDENTITY)
        else:
            with pytest.raises(ValueError, match="seed is 0 here, 1 in the state"):
                EvaluationState(tmp_path).open(IDENTITY)
    assert [path.name for path in tmp_path.iterdir()] == ["identity.json"]


def test_the_folder_of_an_older_version_is_ignored(tmp_path):
    (tmp_path / "header.json").write_text('{"header": {"seed": 3}, "sha256": ""}')
    (tmp_path / "block-00000.stage-0.record").write_bytes(b"pafrec1\n" + bytes(200))
    lines = []
    evaluation().run(EvaluationState(tmp_path), progress=lines.append)
    assert ": 0 of 18 records found" in lines[0]


def test_the_network_fingerprint_ignores_statistics_that_checkpoints_hold():
    first, second = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
    second(torch.randn(4, 2, 3, 3))
    assert network_fingerprint(first) == network_fingerprint(second)
