"""Intervals and tests of accuracies: closed forms, coverage and error rates."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_paf.evaluation.statistics import exact_accuracy, mcnemar, needed_samples, paired_difference


def test_closed_forms_at_the_ends():
    # With no success in n trials the upper end p solves (1 - p)^n = 0.025.
    none, all_ = exact_accuracy(0, 20), exact_accuracy(20, 20)
    assert (none.low, all_.high) == (0, 1)
    assert math.isclose(none.high, 1 - 0.025 ** (1 / 20), rel_tol=1e-9)
    assert math.isclose(all_.low, 0.025 ** (1 / 20), rel_tol=1e-9)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_includes_the_accuracy(counts):
    accuracy = exact_accuracy(*counts)
    assert 0 <= accuracy.low <= accuracy.value <= accuracy.high <= 1


def test_the_interval_has_at_least_its_coverage():
    rng = np.random.default_rng(0)
    truth, n = 0.6, 60
    intervals = [exact_accuracy(int(correct), n) for correct in rng.binomial(n, truth, 1000)]
    assert np.mean([i.low <= truth <= i.high for i in intervals]) > 0.935


def test_text_of_an_accuracy():
    assert str(exact_accuracy(615, 1000)) == "61.5 % [58.4, 64.5]"


@pytest.mark.parametrize("counts", [(3, 2), (-1, 2), (0, 0)])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(ValueError, match="correct <= total"):
        exact_accuracy(*counts)


def test_the_difference_is_antisymmetric_and_its_interval_includes_it():
    one, other = paired_difference(30, 10, 200), paired_difference(10, 30, 200)
    assert one.value == -other.value == 0.1
    assert math.isclose(one.low, -other.high)
    assert one.low < 0.1 < one.high


def test_equal_outcomes_have_an_interval_too():
    same = paired_difference(0, 0, 100)
    assert same.low < 0 < same.high


def test_the_interval_of_a_difference_has_its_coverage():
    rng = np.random.default_rng(0)
    n, draws = 300, 1000
    table = rng.multinomial(n, [0.5, 0.15, 0.1, 0.25], draws)
    covered = [(lambda d: d.low <= 0.05 <= d.high)(paired_difference(int(row[1]), int(row[2]), n)) for row in table]
    assert np.mean(covered) > 0.93


@pytest.mark.parametrize("function", [paired_difference, needed_samples])
def test_more_differing_samples_than_samples_are_refused(function):
    with pytest.raises(ValueError, match="must be at most all samples"):
        function(3, 3, 5)


def test_mcnemar_is_a_binomial_test():
    assert mcnemar(0, 0) == mcnemar(7, 7) == 1
    assert math.isclose(mcnemar(6, 0), 2 * 0.5**6)
    assert math.isclose(mcnemar(1, 8), 2 * (1 + 9) * 0.5**9)
    assert mcnemar(3, 12) == mcnemar(12, 3)


def test_mcnemar_has_its_error_rate():
    rng = np.random.default_rng(0)
    firsts = rng.binomial(30, 0.5, 500)
    assert np.mean([mcnemar(int(first), 30 - int(first)) < 0.05 for first in firsts]) < 0.05 + 0.02


def test_negative_counts_are_refused():
    with pytest.raises(ValueError, match="must not be negative"):
        mcnemar(-1, 3)


def test_needed_samples_of_significant_and_of_equal_results():
    assert needed_samples(30, 5, 200) == 0
    assert needed_samples(0, 0, 200) is None
    assert needed_samples(9, 9, 200) is None
    assert needed_samples(1, 0, 10) > 50


def test_needed_samples_follow_connors_formula():
    # 10 % differ, 2 points apart: ((1.9600 sqrt(.1) + .8416 sqrt(.0996)) / .02)^2 = 1958.0
    assert needed_samples(6, 4, 100) == pytest.approx(1958 - 100, abs=2)
    assert needed_samples(4, 6, 100) == needed_samples(6, 4, 100)


def test_the_needed_samples_have_a_power_of_four_fifths():
    rng = np.random.default_rng(0)
    n = 300 + needed_samples(24, 15, 300)
    table = rng.multinomial(n, [24 / 300, 15 / 300, 261 / 300], 400)
    significant = np.mean([mcnemar(int(row[0]), int(row[1])) <= 0.05 for row in table])
    assert 0.72 < significant < 0.86
