import numpy as np

from lightning_paf.evaluation import EvaluationResult, Verdict


def result() -> EvaluationResult:
    verdicts = np.array(
        [Verdict.ROBUST] * 5 + [Verdict.BROKEN] * 2 + [Verdict.CLEAN_ERROR, Verdict.NOT_JUDGED], np.uint8
    )
    return EvaluationResult("pgd", {"attack": "PGD", "norm": "linf", "eps": "8/255"}, verdicts, 1.5)


def test_counts():
    assert result().judged == 8
    assert (result().clean.correct, result().clean.total) == (7, 8)
    assert (result().robust.correct, result().robust.total) == (5, 8)


def test_file_round_trip(tmp_path):
    path = tmp_path / "new" / "pgd.json"
    result().save(path)
    again = EvaluationResult.load(path)
    assert np.array_equal(again.verdicts, result().verdicts)
    assert (again.name, again.attack, again.seconds) == ("pgd", result().attack, 1.5)
    assert [file.name for file in path.parent.iterdir()] == ["pgd.json"]
