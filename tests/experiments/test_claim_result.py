"""Intervals of claims: closed forms, conclusions, and their coverage in simulations."""

import numpy as np
import pytest
from scipy.stats import t as student

from lightning_paf.experiments.claim_result import compare, overall
from lightning_paf.experiments.experiment import Claim, Experiment, Variant

CLAIM = Claim("A exceeds B", "a", "b", "pgd")


def measured(a, b):
    return {(name, "pgd"): [np.atleast_1d(np.array(v, float)) for v in values] for name, values in (("a", a), ("b", b))}


def test_one_number_per_seed_gives_students_interval_of_paired_differences():
    result = compare(CLAIM, measured([0.5, 0.7, 0.9], [0.4, 0.5, 0.6]))
    half = student.ppf(0.975, 2) * np.std([0.1, 0.2, 0.3], ddof=1) / np.sqrt(3)
    assert result.difference == pytest.approx(0.2)
    assert (result.low, result.high) == pytest.approx((0.2 - half, 0.2 + half))


def test_the_variance_between_images_is_added():
    """Both seeds agree on every image, so all uncertainty is that of the images."""
    a, b = [1, 1, 1, 0], [0, 0, 1, 0]
    result = compare(CLAIM, measured([a, a], [b, b]))
    half = student.ppf(0.975, 3) * np.sqrt(np.var([1, 1, 0, 0], ddof=1) / 4)
    assert (result.difference, result.high - result.low) == pytest.approx((0.5, 2 * half))


def test_two_equal_parts_have_the_degrees_of_freedom_of_both():
    """Satterthwaite: (A + B)^2 / (A^2 / 1 + B^2 / 1) = 2 for equal parts with one degree each."""
    result = compare(CLAIM, measured([[1, 0], [0, -1]], [[0, 0], [0, 0]]))
    assert result.high == pytest.approx(student.ppf(0.975, 2) * np.sqrt(0.5 / 2 + 0.5 / 2))


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


def test_two_metrics_of_one_variant_are_compared_like_two_variants():
    claim = Claim("A exceeds B", "a", "a", "pgd", than="clean")
    assert claim.sides == (("a", "pgd"), ("a", "clean"))
    values = measured([0.5, 0.7, 0.9], [0.4, 0.5, 0.6])
    same = compare(claim, {("a", "pgd"): values["a", "pgd"], ("a", "clean"): values["b", "pgd"]})
    assert (same.low, same.high) == (compare(CLAIM, values).low, compare(CLAIM, values).high)


def test_a_claim_without_variance_is_inconclusive():
    same = [[0, 0, 0], [0, 0, 0]]
    assert compare(Claim("", "a", "b", "pgd", -0.1), measured(same, same)).conclusion == "inconclusive"


def test_a_method_gets_its_worst_conclusion():
    results = {
        word: compare(CLAIM, measured(a, [0.4, 0.4, 0.4]))
        for word, a in {"good": [0.5, 0.51, 0.52], "bad": [0.3, 0.31, 0.32], "open": [0.3, 0.4, 0.6]}.items()
    }
    assert overall([results["good"]]) == "reproduced"
    assert overall([results["good"], results["open"]]) == "inconclusive"
    assert overall(list(results.values())) == "not reproduced"


def test_expectations_do_not_count_if_the_paper_has_claims():
    theirs = compare(Claim("", "a", "b", "pgd", source="paper"), measured([0.5, 0.51, 0.52], [0.4, 0.4, 0.4]))
    ours = compare(CLAIM, measured([0.3, 0.31, 0.32], [0.4, 0.4, 0.4]))
    assert [theirs.conclusion, ours.conclusion] == ["reproduced", "not reproduced"]
    assert overall([theirs, ours]) == "reproduced"


@pytest.mark.parametrize(("a", "b"), [([0.5], [0.4]), ([0.5, 0.6], [0.4, 0.4, 0.4])])
def test_too_few_or_unequal_seeds_are_refused(a, b):
    with pytest.raises(ValueError, match=r"same number of seeds, at least 2, got \d of a and \d of b\. Pass --seeds 3"):
        compare(CLAIM, measured(a, b))


@pytest.mark.parametrize("between_trainings", [0.0, 0.03])
def test_the_interval_has_its_nominal_coverage(between_trainings):
    rng, covered, tries, truth = np.random.default_rng(0), 0, 400, 0.2
    for _ in range(tries):
        easy = rng.random(200)  # the images are a sample, too
        skill = rng.normal(0.0, between_trainings, (2, 3))
        a, b = ([(easy < 0.4 + plus + s).astype(float) for s in skill[i]] for i, plus in enumerate((truth, 0.0)))
        result = compare(CLAIM, measured(a, b))
        covered += result.low <= truth <= result.high
    assert 0.92 < covered / tries < 0.98


@pytest.mark.parametrize(
    "claim", [Claim("", "a", "nobody", "pgd"), Claim("", "a", "b", "beauty"), Claim("", "a", "a", "pgd", than="x")]
)
def test_a_claim_about_an_unknown_variant_or_metric_is_refused(claim):
    with pytest.raises(ValueError, match="must name variants and metrics of its experiment"):
        Experiment("", (Variant("a"), Variant("b")), (claim,))


def test_fractions_are_shown_in_points():
    result = compare(CLAIM, measured([0.5, 0.5], [0.25, 0.25]))
    assert result.shown() == "+25.0 [+25.0, +25.0]"
    assert result.shown(plain=True) == "+0.25 [+0.25, +0.25]"


def test_plain_metrics_must_be_metrics_of_the_experiment():
    with pytest.raises(ValueError, match=r"plain must be among the metrics \['distance'\], got \('pgd',\)"):
        Experiment("title", (Variant("a"), Variant("b")), (CLAIM,), metrics={"distance": len}, plain=("pgd",))
