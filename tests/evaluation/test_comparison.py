"""Comparison of two results on their common samples."""

import json

import numpy as np
import pytest

from lightning_paf.evaluation.comparison import compare, results_in
from lightning_paf.evaluation.outcomes import Outcome
from lightning_paf.evaluation.result import EvaluationResult, SubAttackSummary

ATTACK = {"attack": "PGD", "norm": "linf", "eps": "8/255", "eps_value": 8 / 255, "bounds": [0.0, 1.0], "steps": 10}
CODES = {"r": Outcome.ROBUST, "f": Outcome.FOOLED, "m": Outcome.MISCLASSIFIED, ".": Outcome.NOT_EVALUATED}


def result(outcomes: str, attack=ATTACK, **more) -> EvaluationResult:
    """Outcomes as letters: r(obust), f(ooled), m(isclassified), . (not evaluated)."""
    more = {name: np.array(value) if isinstance(value, list) else value for name, value in more.items()}
    return EvaluationResult("pgd", attack, np.array([CODES[letter] for letter in outcomes], np.uint8), 1.0, **more)


def test_counts_of_a_table_by_hand():
    comparison = compare(result("rrrrffmm"), result("rrfmrmrf"))
    assert comparison.samples == 8
    assert [a.correct for a in comparison.clean] == [6, 6]
    assert [a.correct for a in comparison.robust] == [4, 4]
    assert (comparison.difference.only_first, comparison.difference.only_second) == (2, 2)
    assert comparison.difference.value == 0
    assert comparison.p_value == 1
    assert comparison.more_samples is None
    assert comparison.notes == ()
    assert "each is robust on 2 samples where the other is not" in comparison.conclusion


def test_exchanging_the_models_mirrors_the_comparison():
    a, b = result("rrrrrrrrfm"), result("fffffffrrr")
    one, other = compare(a, b), compare(b, a)
    assert one.robust == other.robust[::-1]
    assert one.difference.value == -other.difference.value
    assert one.p_value == other.p_value
    assert one.more_samples == other.more_samples


@pytest.mark.parametrize(("first", "second", "better", "worse"), [("r", "f", "A", "B"), ("f", "r", "B", "A")])
def test_a_significant_difference_is_a_conclusion(first, second, better, worse):
    comparison = compare(result(9 * first), result(9 * second))
    assert comparison.p_value == pytest.approx(2 * 0.5**9)
    assert comparison.conclusion == f"{better} is more robust than {worse} (p = 0.004)."


def test_an_inconclusive_comparison_has_the_number_of_samples_needed():
    comparison = compare(result("r" * 60 + "f" * 40), result("r" * 55 + "f" * 5 + "rr" + "f" * 38))
    assert comparison.more_samples > 100
    assert f"about {comparison.more_samples} more samples" in comparison.conclusion
    assert compare(result("rrfm"), result("rrfm")).conclusion.endswith("robust on exactly the same samples.")


def test_classes():
    comparison = compare(result("rrffrm", labels=[0, 0, 0, 2, 2, 2]), result("rffrrr", labels=[0, 0, 0, 2, 2, 2]))
    rows = [(row.label, row.total, row.robust) for row in comparison.classes]
    assert rows == [(0, 3, (2, 1)), (2, 3, (1, 3))]
    assert [row.difference for row in comparison.classes] == pytest.approx([1 / 3, -2 / 3])


def test_labels_of_one_side_are_enough_and_none_make_no_table():
    assert len(compare(result("rf", labels=[0, 1]), result("rf")).classes) == 2
    assert compare(result("rf"), result("rf")).classes == ()


def test_only_common_samples_count_in_any_order():
    a = result("rrf.", ids=[7, 3, 5, 1], labels=[0, 1, 0, 1])
    b = result("frrr", ids=[5, 9, 1, 3], labels=[0, 1, 1, 1])
    comparison = compare(a, b)  # in common: 3 (r, r) and 5 (f, f)
    assert comparison.samples == 2
    assert [a.correct for a in comparison.robust] == [1, 1]
    assert comparison.difference.only_first == comparison.difference.only_second == 0
    assert comparison.notes[0] == "A was evaluated on 3 samples, B on 4; 2 are in both and compared."
    with pytest.raises(ValueError, match="must have evaluated samples in common"):
        compare(result("rf.."), result("..rf"))


def test_results_without_ids_count_from_zero():
    comparison = compare(result("rf."), result("rf", ids=[1, 0]))
    assert (comparison.difference.only_first, comparison.difference.only_second) == (1, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "l2"}, "norm is linf for A and l2 for B"),
        ({"eps": "4/255", "eps_value": 4 / 255}, "eps is 8/255 for A and 4/255 for B"),
        ({"bounds": None}, r"bounds is \[0.0, 1.0\] for A and None for B"),
    ],
)
def test_different_threat_models_are_refused_and_named(change, message):
    with pytest.raises(ValueError, match=message):
        compare(result("rf"), result("rf", ATTACK | change))


def test_another_attack_is_noted_and_eps_in_other_notation_is_not():
    written = ATTACK | {"eps": "0.0313725", "eps_value": 0.0313725}
    assert compare(result("rf"), result("rf", written)).notes == ()
    notes = compare(result("rf"), result("rf", ATTACK | {"attack": "APGD", "steps": 50, "seed": 3})).notes
    assert notes == ("The attacks differ in attack, steps, so their strengths may differ.",)


def test_other_images_with_the_same_indices_are_refused():
    a, b = (result("rf", fingerprints={"data": digits, "model": digits}) for digits in ("ab", "cd"))
    with pytest.raises(ValueError, match="different fingerprints of the data"):
        compare(a, b)
    compare(a, result("rf"))  # unknown for B
    compare(a, result("rf", fingerprints={"data": "ab", "model": "cd"}))


def test_fingerprints_of_other_sets_of_samples_are_ignored_and_labels_are_not():
    a = result("rf", fingerprints={"data": "ab"}, labels=[0, 1])
    compare(a, result("rfr", fingerprints={"data": "cd"}, labels=[0, 1, 0]))
    with pytest.raises(ValueError, match="got 1 samples with the same index and different labels"):
        compare(a, result("rfr", fingerprints={"data": "cd"}, labels=[0, 0, 0]))


def test_an_early_stop_is_noted():
    stopped = result("rf", ids=[4, 2], total=10)
    assert "stopped early" in compare(stopped, stopped).notes[0]


def test_content_is_json():
    comparison = compare(result("rrffrm", labels=[0, 0, 0, 2, 2, 2]), result("rffrrr"))
    content = json.loads(json.dumps(comparison.content(), allow_nan=False))
    assert content["conclusion"] == comparison.conclusion
    assert content["difference"]["only_second"] == 2
    assert content["classes"][1]["robust"] == [1, 3]
    assert content["robust"][0]["accuracy"] == 0.5


def test_a_result_is_found_by_its_run(tmp_path):
    saved = result("rf", labels=[0, 1], sub_attacks=(SubAttackSummary("clean", 2, 0, 2, 0, 2, 0.1),))
    path = tmp_path / "run" / "test" / "pgd_linf_8-255.json"
    saved.save(path)
    (path.parent / "other.json").write_text("[1]")
    (path.parent / "broken.json").write_text("{")
    for given in (path, path.parent, tmp_path / "run"):
        found = results_in(given)
        assert list(found) == [path]
        assert (found[path].outcomes == saved.outcomes).all()


def test_a_missing_result_is_refused(tmp_path):
    path = tmp_path / "notes.json"
    path.write_text('{"name": "x"}')
    for absent in (tmp_path / "nowhere", tmp_path, path):
        with pytest.raises(ValueError, match=f"There is no result in {absent}. Pass"):
            results_in(absent)
