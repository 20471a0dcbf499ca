"""Everything that reads the result of an evaluation understands `version=strong`."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.evidence_fakes import CONFIG, written
from helpers.plateau import EPS, evaluated, plateau_samples, shorten

from lightning_paf.attacks import AutoAttack
from lightning_paf.evaluation import EvaluationResult, Outcome, report
from lightning_paf.evaluation.comparison import compare, order_note
from lightning_paf.evaluation.evidence import verify
from lightning_paf.evaluation.warm import WarmCheck

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # two classes, zero gradients
STANDARD = [Outcome.ROBUST, Outcome.FOOLED, Outcome.ROBUST, Outcome.MISCLASSIFIED]
STRONG = [Outcome.FOOLED, *STANDARD[1:]]


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    shorten(monkeypatch)


def test_the_result_contains_that_of_standard(tmp_path):
    standard, strong = evaluated("standard"), evaluated("strong")
    assert (standard.outcomes.tolist(), strong.outcomes.tolist()) == (STANDARD, STRONG)
    strong.save(tmp_path / "strong.json")
    for result in (strong, EvaluationResult.load(tmp_path / "strong.json")):
        assert result.robust_before("smoothed-pgd").tolist() == [True, False, True, False]
        assert result.robust_before("apgd-ce").tolist() == [True, True, True, False]
        assert result.robust_before("none").tolist() == [False, False, True, False]
    assert np.array_equal(standard.robust_before("smoothed-pgd"), standard.outcomes == Outcome.ROBUST)


def test_its_evidence_holds(tmp_path):
    result, (net, samples) = evaluated("strong"), plateau_samples()
    found = verify(written(tmp_path / "evidence", samples, result), net, samples, CONFIG)
    assert (found.ok, found.proven) == (True, 3)
    assert (found.upper_bound.correct, found.upper_bound.total) == (1, 4)


def test_its_report_lists_the_accuracy_after_every_attack(tmp_path):
    result, texts = evaluated("strong"), []
    for number, part in enumerate((result, replace(result, sub_attacks=()))):
        report.write(part, tmp_path / f"{number}.html")
        texts.append((tmp_path / f"{number}.html").read_text())
    for label in ("apgd-ce", "fab-t", "square", "smoothed-pgd"):
        assert texts[0].count(label) > texts[1].count(label) > 0, "the settings name all attacks"


def test_an_early_stop_keeps_both_numbers():
    result = evaluated("strong", lambda robust, evaluated, total: evaluated >= 3, block_size=1)
    assert (result.evaluated, result.total) == (3, 4)
    assert result.outcomes.tolist() == STRONG[:3]
    assert result.robust_before("smoothed-pgd").tolist() == [True, False, True]
    assert result.robust.value in result.anytime


def test_a_comparison_is_paired_and_names_the_different_version():
    comparison = compare(evaluated("standard"), evaluated("strong"))
    assert (comparison.difference.only_first, comparison.difference.only_second) == (1, 0)
    assert comparison.notes == ("The attacks differ in attacks, version, so their strengths may differ.",)
    assert compare(evaluated("strong"), evaluated("strong")).notes == ()


def test_a_warm_check_names_the_attacks_that_it_can_run():
    with pytest.raises(
        ValueError, match=r"got apgd-ce.*smoothed-pgd\. Pass AutoAttack with version=custom and attacks="
    ):
        WarmCheck(AutoAttack(EPS, version="strong"))


@pytest.mark.parametrize(
    ("strong", "sentence"),
    [
        ({"a": 0.4, "b": 0.3, "c": 0.2}, "The order is the same under standard and strong AutoAttack."),
        ({"a": 0.3, "b": 0.35, "c": 0.2}, "Strong AutoAttack changes the order of a and b."),
        ({"a": 0.2, "b": 0.2, "c": 0.3}, "Strong AutoAttack changes the order of a and b, a and c, b and c."),
    ],
)
def test_changes_of_the_order(strong, sentence):
    assert order_note({"a": 0.5, "b": 0.4, "c": 0.3}, strong) == sentence
