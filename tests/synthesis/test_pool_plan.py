"""Classes, blocks and selection of the images of a pool."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from lightning_paf.synthesis.pool_plan import PoolPlan, allocate


@pytest.mark.parametrize(
    ("count", "weights", "expected"),
    [
        (10, [1, 1, 1], [4, 3, 3]),
        (7, [Fraction(1, 2), Fraction(1, 4), Fraction(1, 4)], [3, 2, 2]),
        (10, [Fraction(19, 100), Fraction(81, 100)], [2, 8]),
        (5, [0, 3, 2], [0, 3, 2]),
        (0, [1, 2], [0, 0]),
    ],
)
def test_largest_remainders(count, weights, expected):
    assert allocate(count, weights).tolist() == expected


def test_classes_are_balanced_and_in_random_order():
    plan = PoolPlan(105, 10)
    assert np.bincount(plan.labels).tolist() == [11] * 5 + [10] * 5
    assert (np.diff(plan.labels) < 0).sum() > 20
    assert (plan.labels != PoolPlan(105, 10, seed=1).labels).any()


def test_given_proportions_are_exact():
    plan = PoolPlan(200, 3, proportions=(Fraction("0.1"), Fraction("0.2"), Fraction("0.7")))
    assert np.bincount(plan.labels).tolist() == [20, 40, 140]


def test_blocks_cover_all_images_with_different_seeds():
    plan = PoolPlan(25, 5, block_size=10)
    blocks = [plan.block(number) for number in range(plan.blocks)]
    assert [size for size, _, _ in blocks] == [10, 10, 5]
    assert torch.cat([labels for _, labels, _ in blocks]).tolist() == plan.labels.tolist()
    assert len({torch.rand(1, generator=rng).item() for _, _, rng in blocks}) == 3


def test_a_fraction_is_kept_of_each_class():
    plan = PoolPlan(9, 2, keep=Fraction("0.3"))
    assert np.bincount(plan.labels).tolist() == [17, 14]
    scores = np.arange(plan.drawn, dtype=float)
    kept = plan.kept(plan.labels, scores)
    for label, count in enumerate([5, 4]):
        assert (
            np.flatnonzero(kept & (plan.labels == label)).tolist()
            == np.flatnonzero(plan.labels == label)[-count:].tolist()
        )
    assert PoolPlan(3, 2, keep=Fraction(1)).kept(np.array([0, 1, 0]), np.zeros(3)).all()


def test_equal_scores_keep_the_earlier_image():
    plan = PoolPlan(2, 2, conditional=False, keep=Fraction("0.5"))
    assert plan.labels is None
    assert plan.kept(np.array([0, 1, 1, 0]), np.zeros(4)).tolist() == [True, True, False, False]


def test_predicted_classes_keep_their_proportions():
    plan = PoolPlan(10, 3, conditional=False, keep=Fraction("0.1"))
    labels = np.repeat([0, 1], [80, 20])
    kept = plan.kept(labels, np.random.default_rng(0).random(100))
    assert np.bincount(labels[kept]).tolist() == [8, 2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"count": 2}, r"--count must be at least 3, one for each class, got 2\. Pass --count 3\."),
        ({"proportions": (Fraction(1),)}, r"must be 3 numbers from 0 of sum 1, .* got 1 of sum 1\. .* 1/3 1/3 1/3\."),
        ({"proportions": (Fraction(1, 2),) * 3}, "got 3 of sum 1.5"),
        ({"proportions": (Fraction(2), Fraction(-1), Fraction(0))}, "must be 3 numbers from 0"),
        ({"proportions": (Fraction(1, 2), Fraction(0), Fraction(1, 2))}, "one of 50 images, got 0 for class 1"),
        ({"proportions": (Fraction(1, 3),) * 3, "conditional": False}, "must be of a class-conditional model, got 3"),
    ],
)
def test_bad_numbers_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        PoolPlan(**{"count": 50, "num_classes": 3, **options})
