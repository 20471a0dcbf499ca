"""Coverage of the anytime-valid interval, and stop rules."""

import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import betabinom, hypergeom

from lightning_paf.evaluation import exact_accuracy, stopping
from lightning_paf.evaluation.stopping import HalfWidth, Interval, StopRule, TimeLimit, anytime_interval

interval_of = cache(anytime_interval)
counts = st.integers(1, 60).flatmap(
    lambda total: st.integers(0, total).flatmap(
        lambda evaluated: st.tuples(st.integers(0, evaluated), st.just(evaluated), st.just(total))
    )
)


@settings(deadline=None, max_examples=60)
@given(counts, st.sampled_from([0.5, 0.95, 0.99]))
def test_the_interval_follows_from_the_ratio_of_prior_and_posterior(count, confidence):
    correct, evaluated, total = count
    successes = np.arange(total + 1)
    prior = betabinom(total, 1, 1).pmf(successes)
    likelihood = hypergeom(total, successes, evaluated).pmf(correct)
    posterior = prior * likelihood / (prior * likelihood).sum()
    with np.errstate(divide="ignore"):
        kept = successes[prior / posterior < (1 + 1e-9) / (1 - confidence)] / total
    interval = anytime_interval(*count, confidence)
    assert (interval.low, interval.high) == (kept[0], kept[-1])


@settings(deadline=None, max_examples=60)
@given(counts)
def test_the_interval_includes_the_accuracy_so_far_and_possible_values_only(count):
    correct, evaluated, total = count
    interval = anytime_interval(*count)
    assert correct / total <= interval.low <= interval.high <= (total - evaluated + correct) / total
    if evaluated:
        nearest = round(correct / evaluated * total)
        assert interval.low <= nearest / total <= interval.high


def test_exchanging_correct_and_wrong_mirrors_the_interval():
    one, other = anytime_interval(13, 40, 200), anytime_interval(27, 40, 200)
    assert math.isclose(one.low, 1 - other.high)
    assert math.isclose(one.high, 1 - other.low)


@pytest.mark.parametrize("correct", [0, 1, 77, 299, 300])
def test_all_samples_give_a_point_and_none_gives_all_values(correct):
    assert anytime_interval(correct, 300, 300) == Interval(correct / 300, correct / 300)
    assert anytime_interval(0, 0, 300) == Interval(0, 1)


@pytest.mark.parametrize("truth", [3, 75, 150])
def test_at_most_one_path_in_twenty_ever_misses_the_truth(truth):
    total, paths = 300, 400
    rng = np.random.default_rng(truth)
    population = np.arange(total) < truth
    missed = 0
    for _ in range(paths):
        correct = np.cumsum(rng.permutation(population))
        intervals = [interval_of(int(correct[n - 1]), n, total) for n in range(1, total + 1)]
        missed += not all(truth / total in interval for interval in intervals)
    assert missed / paths <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / paths)


def test_intervals_for_one_number_of_samples_would_miss_it_far_more_often():
    """The test above can fail."""
    rng = np.random.default_rng(0)
    fixed = cache(exact_accuracy)
    missed = 0
    for _ in range(60):
        correct = np.cumsum(rng.random(300) < 0.5)
        looks = [fixed(int(correct[n - 1]), n) for n in range(15, 301, 15)]
        missed += not all(look.low <= 0.5 <= look.high for look in looks)
    assert missed > 6  # 5 % would be 3


@pytest.mark.parametrize(("evaluated", "factor"), [(50, 1.8), (200, 1.8), (1000, 1.8), (5000, 1.4)])
def test_it_costs_less_than_twice_the_width_of_a_fixed_interval(evaluated, factor):
    anytime, fixed = (
        anytime_interval(int(0.61 * evaluated), evaluated, 10_000),
        exact_accuracy(int(0.61 * evaluated), evaluated),
    )
    ratio = (anytime.high - anytime.low) / (fixed.high - fixed.low)
    assert 1 < ratio < factor


def test_drawing_without_replacement_narrows_the_interval():
    assert anytime_interval(550, 900, 1000).half_width < 0.4 * anytime_interval(550, 900, 10**6).half_width


def test_text_of_an_interval():
    assert str(Interval(0.584, 0.645)) == "[58.4, 64.5] %"


@pytest.mark.parametrize("count", [(3, 2, 10), (-1, 2, 10), (1, 11, 10), (0, 0, 0)])
def test_impossible_counts_are_refused(count):
    with pytest.raises(ValueError, match="correct <= evaluated <= total"):
        anytime_interval(*count)


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_impossible_confidences_are_refused(confidence):
    with pytest.raises(ValueError, match="between 0 and 1"):
        anytime_interval(1, 2, 10, confidence)


def rules() -> list[StopRule]:
    return [HalfWidth(0.05), TimeLimit(1e-9)]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: type(rule).__name__)
def test_every_rule_has_a_reason_and_stops_before_the_end(rule):
    assert isinstance(rule(0, 0, 1000), bool)
    assert rule(700, 900, 1000)
    assert len(rule.reason) > 10
    rule.reset()


def test_every_rule_is_tested():
    named = {value for value in vars(stopping).values() if isinstance(value, type) and issubclass(value, StopRule)}
    assert named - {StopRule} == {type(rule) for rule in rules()}


def test_half_width_stops_at_its_width_and_depends_on_the_counts_alone():
    rule = HalfWidth(0.05)
    counts = [(5, 10, 100), (40, 50, 100), (50, 90, 100)]
    assert [rule(*count) for count in counts] == [rule(*count) for count in counts[::-1]][::-1]
    stopped = next(n for n in range(10, 1001, 10) if rule(int(0.6 * n), n, 1000))
    assert anytime_interval(int(0.6 * stopped), stopped, 1000).half_width <= 0.05
    assert anytime_interval(int(0.6 * (stopped - 10)), stopped - 10, 1000).half_width > 0.05


def test_the_time_starts_at_the_first_call(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    rule = TimeLimit(minutes=2)
    now[0] = 5000.0
    assert not rule(1, 2, 10)
    now[0] += 119
    assert not rule(1, 2, 10)
    now[0] += 1
    assert rule(1, 2, 10)
    rule.reset()
    assert not rule(1, 2, 10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HalfWidth(0), "half_width must be between"),
        (lambda: HalfWidth(1), "0.01 for one percentage point"),
        (lambda: TimeLimit(0), "minutes must be positive"),
        (lambda: TimeLimit(float("nan")), "minutes must be positive"),
    ],
)
def test_invalid_rules_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
