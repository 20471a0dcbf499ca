import json

import numpy as np
import pytest

from lightning_paf.evaluation.comparison import compare, find_result, load_result
from lightning_paf.evaluation.result import EvaluationResult, Outcome, SubAttackSummary

ATTACK = {"attack": "PGD", "norm": "linf", "eps": "8/255", "eps_value": 8 / 255, "bounds": [0.0, 1.0], "steps": 10}
CODES = {"r": Outcome.ROBUST, "b": Outcome.FOOLED, "e": Outcome.MISCLASSIFIED, ".": Outcome.NOT_EVALUATED}


def result(outcomes: str, attack=ATTACK, **more) -> EvaluationResult:
    """Outcomes as letters: r(obust), b(roken), e(rror), . (not evaluated)."""
    more = {name: np.array(value) if isinstance(value, list) else value for name, value in more.items()}
    return EvaluationResult("pgd", attack, np.array([CODES[letter] for letter in outcomes], np.uint8), 1.0, **more)


def test_counts_of_a_table_done_by_hand():
    comparison = compare(result("rrrrbbee"), result("rrbererb"))
    assert comparison.samples == 8
    assert [a.correct for a in comparison.clean] == [6, 6]
    assert [a.correct for a in comparison.robust] == [4, 4]
    assert (comparison.difference.only_first, comparison.difference.only_second) == (2, 2)
    assert comparison.difference.value == 0
    assert comparison.p_value == 1
    assert comparison.more_samples is None
    assert comparison.notes == ()
    assert "each is robust on 2 samples where the other is not" in comparison.conclusion


def test_swapping_swaps_everything():
    a, b = result("rrrrrrrrbe"), result("bbbbbbbrrr")
    one, other = compare(a, b), compare(b, a)
    assert one.robust == other.robust[::-1]
    assert one.difference.value == -other.difference.value
    assert one.p_value == other.p_value
    assert one.more_samples == other.more_samples


@pytest.mark.parametrize(("first", "second", "better"), [("r" * 9, "b" * 9, "A"), ("b" * 9, "r" * 9, "B")])
def test_a_clear_case(first, second, better):
    comparison = compare(result(first), result(second))
    assert comparison.p_value == pytest.approx(2 * 0.5**9)
    worse = {"A": "B", "B": "A"}[better]
    assert comparison.conclusion == f"{better} is more robust than {worse} (p = 0.004)."


def test_an_open_case_says_how_many_more():
    comparison = compare(result("r" * 60 + "bb" + "b" * 38), result("r" * 55 + "b" * 5 + "rr" + "b" * 38))
    assert comparison.more_samples > 100
    assert f"about {comparison.more_samples} more samples" in comparison.conclusion


def test_identical_results_cannot_be_told_apart():
    assert compare(result("rrbe"), result("rrbe")).conclusion.endswith("robust on exactly the same samples.")


def test_classes():
    comparison = compare(result("rrbbre", labels=[0, 0, 0, 2, 2, 2]), result("rbbrrr", labels=[0, 0, 0, 2, 2, 2]))
    rows = [(row.label, row.total, row.robust) for row in comparison.classes]
    assert rows == [(0, 3, (2, 1)), (2, 3, (1, 3))]
    assert [row.difference for row in comparison.classes] == pytest.approx([1 / 3, -2 / 3])


def test_labels_of_one_side_are_enough_and_none_make_no_table():
    assert len(compare(result("rb", labels=[0, 1]), result("rb")).classes) == 2
    assert compare(result("rb"), result("rb")).classes == ()


def test_only_common_samples_count_whatever_their_order():
    a = result("rrb.", ids=[7, 3, 5, 1], labels=[0, 1, 0, 1])
    b = result("brrr", ids=[5, 9, 1, 3], labels=[0, 1, 1, 1])
    comparison = compare(a, b)  # in common: 3 (r, r) and 5 (b, b)
    assert comparison.samples == 2
    assert [a.correct for a in comparison.robust] == [1, 1]
    assert comparison.difference.only_first == comparison.difference.only_second == 0
    assert comparison.notes[0] == "A was evaluated on 3 samples, B on 4; compared are the 2 of both."


def test_results_without_ids_count_from_zero():
    comparison = compare(result("rb."), result("rb", ids=[1, 0]))
    assert (comparison.difference.only_first, comparison.difference.only_second) == (1, 1)


def test_nothing_in_common():
    with pytest.raises(ValueError, match="must have evaluated samples in common"):
        compare(result("rb.."), result("..rb"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "l2"}, "norm is linf for A and l2 for B"),
        ({"eps": "4/255", "eps_value": 4 / 255}, "eps is 8/255 for A and 4/255 for B"),
        ({"bounds": None}, r"bounds is \[0.0, 1.0\] for A and None for B"),
    ],
)
def test_other_threats_are_refused_and_named(change, message):
    with pytest.raises(ValueError, match=message):
        compare(result("rb"), result("rb", ATTACK | change))


def test_the_same_threat_written_otherwise_is_no_difference():
    written = ATTACK | {"eps": "0.0313725", "eps_value": 0.0313725}
    assert compare(result("rb"), result("rb", written)).notes == ()


def test_another_attack_is_noted():
    notes = compare(result("rb"), result("rb", ATTACK | {"attack": "APGD", "steps": 50, "seed": 3})).notes
    assert notes == ("The attacks differ in attack, steps, so that their strengths may differ.",)


def test_other_images_under_the_same_numbers_are_refused():
    a, b = (result("rb", fingerprints={"data": digits, "model": digits}) for digits in ("ab", "cd"))
    with pytest.raises(ValueError, match="different fingerprints of the data"):
        compare(a, b)
    compare(a, result("rb"))  # not known for B
    compare(a, result("rb", fingerprints={"data": "ab", "model": "cd"}))


def test_fingerprints_of_other_sets_of_samples_may_differ_but_labels_may_not():
    a = result("rb", fingerprints={"data": "ab"}, labels=[0, 1])
    compare(a, result("rbr", fingerprints={"data": "cd"}, labels=[0, 1, 0]))
    with pytest.raises(ValueError, match="got 1 samples with the same index and different labels"):
        compare(a, result("rbr", fingerprints={"data": "cd"}, labels=[0, 0, 0]))


def test_stopping_early_is_noted():
    stopped = result("rb", ids=[4, 2], total=10)
    assert "stopped early" in compare(stopped, stopped).notes[0]


def test_content_is_json():
    comparison = compare(result("rrbbre", labels=[0, 0, 0, 2, 2, 2]), result("rbbrrr"))
    content = json.loads(json.dumps(comparison.content(), allow_nan=False))
    assert content["conclusion"] == comparison.conclusion
    assert content["difference"]["only_second"] == 2
    assert content["classes"][1]["robust"] == [1, 3]
    assert content["robust"][0]["accuracy"] == 0.5


def test_a_result_is_found_by_its_run(tmp_path):
    saved = result("rb", labels=[0, 1], sub_attacks=(SubAttackSummary("clean", 2, 0, 2, 0, 2, 0.1),))
    path = tmp_path / "run" / "test" / "pgd_linf_8-255.json"
    saved.save(path)
    (path.parent / "other.json").write_text("[1]")
    (path.parent / "broken.json").write_text("{")
    assert find_result(path) == find_result(path.parent) == find_result(tmp_path / "run") == path
    assert (load_result(path).outcomes == saved.outcomes).all()


def test_results_that_are_missing_or_many_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"There is no .*nowhere"):
        find_result(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no result"):
        find_result(tmp_path)
    for name in ("a", "b"):
        result("rb").save(tmp_path / f"{name}.json")
    with pytest.raises(ValueError, match=r"got 2: a\.json, b\.json\. Pass one"):
        find_result(tmp_path)


def test_other_files_are_no_results(tmp_path):
    path = tmp_path / "notes.json"
    path.write_text('{"name": "x"}')
    with pytest.raises(ValueError, match="is no result file"):
        load_result(path)
