"""Intervals of claims: closed forms, conclusions, and their coverage in simulations."""

import numpy as np
import pytest
from scipy.stats import t as student

from lightning_paf.experiments.claim_result import compare, overall
from lightning_paf.experiments.experiment import Claim, Experiment, Variant

CLAIM = Claim("A exceeds B", "a", "b", "pgd")


def measured(a, b):
    return {"a": [np.atleast_1d(np.array(v, float)) for v in a], "b": [np.atleast_1d(np.array(v, float)) for v in b]}


def test_one_number_for_each_seed_is_students_interval_of_the_paired_differences():
    outcome = compare(CLAIM, measured([0.5, 0.7, 0.9], [0.4, 0.5, 0.6]))
    half = student.ppf(0.975, 2) * np.std([0.1, 0.2, 0.3], ddof=1) / np.sqrt(3)
    assert outcome.difference == pytest.approx(0.2)
    assert (outcome.low, outcome.high) == pytest.approx((0.2 - half, 0.2 + half))


def test_the_variance_between_images_is_added():
    """Both seeds agree on every image, so that all of the uncertainty is that of the images."""
    a, b = [1, 1, 1, 0], [0, 0, 1, 0]
    outcome = compare(CLAIM, measured([a, a], [b, b]))
    half = student.ppf(0.975, 3) * np.sqrt(np.var([1, 1, 0, 0], ddof=1) / 4)
    assert (outcome.difference, outcome.high - outcome.low) == pytest.approx((0.5, 2 * half))


def test_equal_parts_have_the_freedom_of_both():
    """Satterthwaite: (A + B)^2 / (A^2 / 1 + B^2 / 1) = 2 where both parts are equal and have one degree each."""
    outcome = compare(CLAIM, measured([[1, 0], [0, -1]], [[0, 0], [0, 0]]))
    assert outcome.high == pytest.approx(student.ppf(0.975, 2) * np.sqrt(0.5 / 2 + 0.5 / 2))


@pytest.mark.parametrize(
    ("a", "by", "conclusion"),
    [
        ([0.5, 0.51, 0.52], 0.0, "reproduced"),
        ([0.3, 0.31, 0.32], 0.0, "not reproduced"),
        ([0.5, 0.51, 0.52], 0.2, "not reproduced"),
        ([0.3, 0.4, 0.6], 0.0, "inconclusive"),
        ([0.39, 0.40, 0.41], -0.05, "reproduced"),
    ],
)
def test_conclusions(a, by, conclusion):
    assert compare(Claim("", "a", "b", "pgd", by), measured(a, [0.4, 0.4, 0.4])).conclusion == conclusion


def test_two_measures_of_one_arm_are_compared_as_two_arms_are():
    claim = Claim("A exceeds B", "a", "a", "pgd", than="clean")
    assert claim.sides == {"pgd of a": ("a", "pgd"), "clean of a": ("a", "clean")}
    values = measured([0.5, 0.7, 0.9], [0.4, 0.5, 0.6])
    same = compare(claim, {"pgd of a": values["a"], "clean of a": values["b"]})
    assert (same.low, same.high) == (compare(CLAIM, values).low, compare(CLAIM, values).high)


def test_a_claim_without_variance_is_inconclusive():
    same = [[0, 0, 0], [0, 0, 0]]
    assert compare(Claim("", "a", "b", "pgd", -0.1), measured(same, same)).conclusion == "inconclusive"


def test_a_method_gets_its_worst_conclusion():
    outcomes = {
        word: compare(CLAIM, measured(a, [0.4, 0.4, 0.4]))
        for word, a in {"good": [0.5, 0.51, 0.52], "bad": [0.3, 0.31, 0.32], "open": [0.3, 0.4, 0.6]}.items()
    }
    assert overall([outcomes["good"]]) == "reproduced"
    assert overall([outcomes["good"], outcomes["open"]]) == "inconclusive"
    assert overall(list(outcomes.values())) == "not reproduced"


def test_expectations_do_not_count_if_the_paper_has_claims():
    theirs = compare(Claim("", "a", "b", "pgd", source="paper"), measured([0.5, 0.51, 0.52], [0.4, 0.4, 0.4]))
    ours = compare(CLAIM, measured([0.3, 0.31, 0.32], [0.4, 0.4, 0.4]))
    assert [theirs.conclusion, ours.conclusion] == ["reproduced", "not reproduced"]
    assert overall([theirs, ours]) == "reproduced"


@pytest.mark.parametrize(("a", "b"), [([0.5], [0.4]), ([0.5, 0.6], [0.4, 0.4, 0.4])])
def test_too_few_or_unequal_seeds_are_refused(a, b):
    with pytest.raises(ValueError, match="at least 2 seeds"):
        compare(CLAIM, measured(a, b))


@pytest.mark.parametrize("between_trainings", [0.0, 0.03])
def test_the_interval_holds_the_truth_as_often_as_it_says(between_trainings):
    rng, held, tries, truth = np.random.default_rng(0), 0, 400, 0.2
    for _ in range(tries):
        easy = rng.random(200)  # the images are a sample, too
        skill = rng.normal(0.0, between_trainings, (2, 3))
        a, b = ([(easy < 0.4 + plus + s).astype(float) for s in skill[i]] for i, plus in enumerate((truth, 0.0)))
        outcome = compare(CLAIM, measured(a, b))
        held += outcome.low <= truth <= outcome.high
    assert 0.92 < held / tries < 0.98


@pytest.mark.parametrize(
    "claim", [Claim("", "a", "nobody", "pgd"), Claim("", "a", "b", "beauty"), Claim("", "a", "a", "pgd", than="x")]
)
def test_a_claim_about_what_is_not_there_is_refused(claim):
    with pytest.raises(ValueError, match="must name variants and metrics of its experiment"):
        Experiment("", (Variant("a"), Variant("b")), (claim,))


def test_fractions_are_shown_in_points():
    outcome = compare(CLAIM, measured([0.5, 0.5], [0.25, 0.25]))
    assert outcome.shown() == "+25.0 [+25.0, +25.0]"
    assert outcome.shown(plain=True) == "+0.25 [+0.25, +0.25]"


def test_plain_measures_are_measures_of_the_study():
    with pytest.raises(ValueError, match=r"plain=\('pgd',\) must be among the metrics \['distance'\]"):
        Experiment("title", (Variant("a"), Variant("b")), (CLAIM,), metrics={"distance": len}, plain=("pgd",))
