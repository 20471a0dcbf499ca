import json
import os
from dataclasses import fields

import numpy as np
import pytest
from helpers import evaluation_worker

from lightning_paf.evaluation import EvaluationResult, MemoryLedger, StageSummary, Verdict, judge


def result() -> EvaluationResult:
    verdicts = np.array(
        [Verdict.ROBUST] * 5 + [Verdict.BROKEN] * 2 + [Verdict.CLEAN_ERROR, Verdict.NOT_JUDGED], np.uint8
    )
    return EvaluationResult("pgd", {"attack": "PGD", "norm": "linf", "eps": "8/255"}, verdicts, 1.5)


def full_result() -> EvaluationResult:
    judgement = judge(
        evaluation_worker.model(),
        evaluation_worker.attack(),
        evaluation_worker.samples(),
        MemoryLedger(),
        seed=7,
        block_size=8,
    )
    return EvaluationResult.from_judgement("worst", judgement)


def assert_equal(one: EvaluationResult, other: EvaluationResult) -> None:
    for field in fields(EvaluationResult):
        mine, its = getattr(one, field.name), getattr(other, field.name)
        if isinstance(mine, np.ndarray):
            assert mine.dtype == its.dtype
            assert np.array_equal(mine, its), field.name
        elif field.name == "seconds":
            assert mine == pytest.approx(its, abs=1e-3)
        else:
            assert mine == its, field.name


def test_counts():
    assert result().judged == 8
    assert (result().clean.correct, result().clean.total) == (7, 8)
    assert (result().robust.correct, result().robust.total) == (5, 8)


def test_a_judgement_becomes_a_result():
    judgement = judge(
        evaluation_worker.model(),
        evaluation_worker.attack(),
        evaluation_worker.samples(),
        MemoryLedger(),
        seed=7,
        block_size=8,
        stop=lambda robust, judged, total: judged >= 16,
    )
    made = EvaluationResult.from_judgement("worst", judgement)
    assert (made.judged, made.total) == (16, 23)
    assert (made.clean, made.robust) == (judgement.clean, judgement.robust)
    assert made.attack == evaluation_worker.attack().describe()
    assert set(made.fingerprints) == {"model", "network", "data", "code"}
    assert made.seed == 7
    assert made.seconds == sum(stage.seconds for stage in made.stages) > 0


@pytest.mark.parametrize("make", [result, full_result])
def test_file_round_trip(tmp_path, make):
    path = tmp_path / "new" / "pgd.json"
    saved = make()
    saved.save(path)
    assert_equal(saved, EvaluationResult.load(path))
    assert [file.name for file in path.parent.iterdir()] == ["pgd.json"]


def test_a_file_from_before_there_were_ids_and_stages_is_read(tmp_path):
    path = tmp_path / "old.json"
    path.write_text(
        json.dumps({"name": "pgd", "attack": {"norm": "linf"}, "seconds": 2.0, "verdicts": "1123", "confidence": 0.95})
    )
    old = EvaluationResult.load(path)
    assert old.verdicts.tolist() == [1, 1, 2, 3]
    assert (old.ids, old.labels, old.broken_by, old.stages, old.seed, old.total) == (None, None, None, (), None, None)


def test_stages_keep_their_types(tmp_path):
    saved = full_result()
    saved.save(tmp_path / "worst.json")
    again = EvaluationResult.load(tmp_path / "worst.json")
    assert all(isinstance(stage, StageSummary) for stage in again.stages)
    assert [stage.label for stage in again.stages] == ["clean", "slowpgd", "slowpgd"]


def test_every_field_has_its_line(tmp_path):
    full_result().save(tmp_path / "worst.json")
    lines = (tmp_path / "worst.json").read_text().splitlines()
    assert len(lines) == len(json.loads("\n".join(lines))) + 2


def test_a_full_disk_leaves_the_last_file(tmp_path, monkeypatch):
    path = tmp_path / "pgd.json"
    result().save(path)

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        full_result().save(path)
    assert EvaluationResult.load(path).name == "pgd"
    assert list(tmp_path.iterdir()) == [path]
