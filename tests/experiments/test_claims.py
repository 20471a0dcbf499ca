"""Claims of several kinds: closed forms, and the interval of rank correlations."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from lightning_paf.experiments.claim_result import compare
from lightning_paf.experiments.claims import BestClaim, BoundClaim, GainClaim, RankClaim
from lightning_paf.experiments.experiment import Claim, Experiment, Variant
from lightning_paf.experiments.intervals import rank_interval

IMAGES = {"a": [[1, 1, 1, 0], [1, 1, 0, 0]], "b": [[1, 0, 0, 0], [1, 0, 0, 0]], "c": [[1, 1, 0, 0], [1, 0, 0, 0]]}
MEASURED = {(name, "pgd"): [np.array(seed, float) for seed in seeds] for name, seeds in IMAGES.items()}


def numbers(**variants):
    """One number per seed of the metric alpha."""
    return {(name, "alpha"): [np.array([value]) for value in values] for name, values in variants.items()}


def test_the_best_of_the_others_is_the_one_with_the_largest_mean():
    best, against_c = BestClaim("", "a", ("b", "c"), "pgd"), Claim("", "a", "c", "pgd")
    assert compare(best, MEASURED).shown() == compare(against_c, MEASURED).shown()
    assert best.described() == {"metric": "pgd", "variants": ["a", "b", "c"]}


def test_a_gain_is_a_difference_of_differences():
    result = compare(GainClaim("", ("a", "b"), ("c", "b"), "pgd"), MEASURED)
    assert result.shown() == compare(Claim("", "a", "c", "pgd"), MEASURED).shown(), "b cancels"


@pytest.mark.parametrize(
    ("values", "conclusion"),
    [([1.3, 1.4, 1.5], "reproduced"), ([0.6, 0.7, 0.65], "not reproduced"), ([0.5, 1.4, 1.2], "inconclusive")],
)
def test_a_bound_is_a_constant_for_every_seed(values, conclusion):
    claim = BoundClaim("", "a", "alpha", 1.0)
    result = compare(claim, numbers(a=values))
    same = compare(Claim("", "a", "b", "alpha"), numbers(a=values, b=[1.0, 1.0, 1.0]))
    assert (result.difference, result.low, result.high) == (same.difference, same.low, same.high)
    assert result.conclusion == conclusion
    assert claim.described()["metric"] == "alpha - 1"
    assert BoundClaim("", "a", "mean", -0.2).described()["metric"] == "mean + 0.2"


def test_a_rank_correlation_is_that_of_the_means_over_seeds():
    rng, names = np.random.default_rng(0), tuple("abcdefgh")
    robust, curvature = rng.random((8, 3)), rng.random(8)
    measured = {(name, "pgd"): [np.array([v]) for v in values] for name, values in zip(names, robust, strict=True)}
    measured |= {(name, "bend"): [np.array([v])] * 3 for name, v in zip(names, curvature, strict=True)}
    claim = RankClaim("", names, "pgd", "bend")
    result = compare(claim, measured)
    assert result.difference == pytest.approx(spearmanr(curvature, robust.mean(1)).statistic)
    assert result.low < result.difference < result.high
    assert claim.is_plain(()), "a correlation is not shown in points"
    assert claim.described()["metric"] == "pgd ~ bend, rank correlation"


def test_a_perfect_rank_correlation_needs_enough_points():
    x = np.arange(8.0)
    perfect = rank_interval(x, np.exp(x))
    assert (perfect.value, perfect.high < 1) == (pytest.approx(1), True)
    assert perfect.low > 0.9
    assert rank_interval(x[:4], x[:4]).low < 0, "four points show nothing"
    falling = rank_interval(x, -x)
    assert (falling.low, falling.high) == pytest.approx((-perfect.high, -perfect.low))


def test_infinite_values_have_a_rank_and_equal_values_none():
    assert rank_interval(np.array([1.0, 2, 3, np.inf]), np.array([1.0, 2, 3, 4])).value == pytest.approx(1)
    constant = rank_interval(np.ones(6), np.arange(6.0))
    assert (constant.low, constant.high) == (-1, 1)


def test_the_interval_of_a_rank_correlation_has_its_nominal_coverage():
    rng, covered, tries = np.random.default_rng(0), 0, 500
    truth = 6 / np.pi * np.arcsin(0.25)  # Spearman's of a normal pair with correlation 0.5
    for _ in range(tries):
        x, y = rng.multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]], 8).T
        found = rank_interval(x, y)
        covered += found.low <= truth <= found.high
    assert 0.92 < covered / tries < 0.99


@pytest.mark.parametrize(
    "claim",
    [
        BestClaim("", "a", ("b", "nobody"), "pgd"),
        GainClaim("", ("a", "b"), ("a", "b"), "beauty"),
        BoundClaim("", "nobody", "pgd", 0.5),
        RankClaim("", ("a", "b"), "pgd", "beauty"),
    ],
)
def test_every_kind_of_claim_must_name_variants_and_metrics(claim):
    with pytest.raises(ValueError, match="must name variants and metrics of its experiment"):
        Experiment("", (Variant("a"), Variant("b")), (claim,))


def test_every_kind_of_claim_needs_two_seeds():
    with pytest.raises(ValueError, match=r"at least 2, got 1 of a\. Pass --seeds 3"):
        compare(BoundClaim("", "a", "alpha", 1.0), numbers(a=[1.5]))
