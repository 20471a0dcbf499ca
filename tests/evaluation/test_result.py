"""Counts of a result, and its file."""

import errno
import json
import os
from dataclasses import fields

import numpy as np
import pytest
from helpers.evaluation_worker import attack, evaluation
from helpers.state_fakes import refuse, undisturbed

from lightning_paf.evaluation import EvaluationResult, Outcome, SubAttackSummary


def result() -> EvaluationResult:
    outcomes = [Outcome.ROBUST] * 5 + [Outcome.FOOLED] * 2 + [Outcome.MISCLASSIFIED, Outcome.NOT_EVALUATED]
    return EvaluationResult("pgd", {"attack": "PGD", "norm": "linf", "eps": "8/255"}, np.array(outcomes, np.uint8), 1.5)


def assert_equal(one: EvaluationResult, other: EvaluationResult) -> None:
    for field in fields(EvaluationResult):
        mine, its = getattr(one, field.name), getattr(other, field.name)
        if isinstance(mine, np.ndarray):
            assert np.array_equal(mine, its), field.name
            assert mine.dtype == its.dtype
        elif field.name == "seconds":
            assert mine == pytest.approx(its, abs=1e-3)
        elif field.name not in ("evaluation", "state"):
            assert mine == its, field.name


def test_counts():
    assert result().evaluated == 8
    assert (result().clean.correct, result().clean.total) == (7, 8)
    assert (result().robust.correct, result().robust.total) == (5, 8)
    assert result().ids.tolist() == list(range(9))
    assert result().per_class() == []


def test_an_early_stop():
    stopped = evaluation(seed=7, block_size=8).run(stop=lambda robust, evaluated, total: evaluated >= 16)
    assert (stopped.evaluated, stopped.total) == (16, 23)
    assert stopped.attack == attack().describe()
    assert set(stopped.fingerprints) == {"model", "network", "data", "code"}
    assert stopped.seed == 7
    assert stopped.seconds == sum(part.seconds for part in stopped.sub_attacks) > 0
    assert stopped.robust.value in stopped.anytime
    assert undisturbed().anytime is None


@pytest.mark.parametrize("make", [result, undisturbed])
def test_file_round_trip(tmp_path, make):
    path = tmp_path / "new" / "pgd.json"
    make().save(path)
    assert_equal(make(), EvaluationResult.load(path))
    assert [file.name for file in path.parent.iterdir()] == ["pgd.json"]
    lines = path.read_text().splitlines()
    assert len(lines) == len(json.loads("\n".join(lines))) + 2, "one line for each field"


def test_a_loaded_result_has_no_adversarial_images(tmp_path):
    undisturbed().save(tmp_path / "pgd.json")
    with pytest.raises(ValueError, match="Run the evaluation again"):
        next(EvaluationResult.load(tmp_path / "pgd.json").examples())


OLDEST = {"name": "pgd", "attack": {"norm": "linf"}, "seconds": 2.0, "verdicts": "1123", "confidence": 0.95}
STAGE = {"label": "clean", "attacked": 4, "broken": 1, "forward": 0, "backward": 0, "exact": 4, "seconds": 0.1}
OLD = OLDEST | {"verdicts": "1120", "ids": [4, 2, 0, 1], "labels": [0, 1, 0, 1], "broken_by": [-1, -1, 1, -1]}


def test_files_of_earlier_versions_are_read(tmp_path):
    path = tmp_path / "old.json"
    path.write_text(json.dumps(OLDEST))
    old = EvaluationResult.load(path)
    assert old.outcomes.tolist() == [1, 1, 2, 3]
    assert [len(column) for column in (old.ids, old.labels, old.fooled_by, old.sub_attacks)] == [4, 0, 0, 0]
    assert (old.seed, old.total, old.precision) == (None, None, "fp32")
    path.write_text(json.dumps(OLD | {"stages": [STAGE], "seed": 3}))
    old = EvaluationResult.load(path)
    for name, key in (("ids", "ids"), ("labels", "labels"), ("fooled_by", "broken_by")):
        assert getattr(old, name).tolist() == OLD[key]
    assert old.sub_attacks == (SubAttackSummary("clean", 4, 1, 0, 0, 4, 0.1),)
    assert (old.evaluated, old.seed) == (3, 3)


@pytest.mark.parametrize(
    "entry",
    [
        {"attack": None},
        {"fingerprints": 5},
        {"sub_attacks": "x"},
        {"outcomes": "no"},
        {"labels": 5},
        {"seconds": None},
        {"labels": [[0]]},
    ],
)
def test_a_damaged_file_is_refused_with_its_name(entry, tmp_path):
    path = tmp_path / "pgd.json"
    result().save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | entry))
    with pytest.raises(ValueError, match=r"pgd\.json must be a result of `lightning-paf test`, got"):
        EvaluationResult.load(path)


def test_a_full_disk_leaves_the_previous_file(tmp_path, monkeypatch):
    path = tmp_path / "pgd.json"
    result().save(path)

    monkeypatch.setattr(os, "fsync", refuse(errno.ENOSPC))
    with pytest.raises(ValueError, match=r"pgd.json cannot be used as a result: No space"):
        undisturbed().save(path)
    assert EvaluationResult.load(path).name == "pgd"
    assert list(tmp_path.iterdir()) == [path]
