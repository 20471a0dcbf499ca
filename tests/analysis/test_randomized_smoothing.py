"""Randomised smoothing of a linear classifier, whose true radii are the distances to its plane."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binomtest, norm
from torch import nn

from lightning_paf.analysis.randomized_smoothing import (
    ABSTAINS,
    Certificates,
    Smoothing,
    certificate,
    draw_certified,
    majority,
)

SIGMA = 0.5
SHAPE = (3, 4, 4)


class Plane(nn.Module):
    """Class 1 on one side of `w . x + b = 0`, class 0 on the other."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(48, generator=torch.Generator().manual_seed(0)))
        self.b = nn.Parameter(torch.tensor(0.3))

    def forward(self, x):
        value = x.flatten(1) @ self.w + self.b
        return torch.stack([torch.zeros_like(value), value], 1)

    def at(self, distances):
        """Images at signed distances from the plane, (N, 3, 4, 4)."""
        w, b = self.w.detach(), self.b.detach()
        unit = w / w.norm()
        along = torch.randn(len(distances), 48, generator=torch.Generator().manual_seed(1))
        along -= (along @ unit)[:, None] * unit
        return (along + (torch.tensor(distances) - b / w.norm())[:, None] * unit).view(-1, *SHAPE)


PLANE = Plane()
DISTANCES = [0.4, -0.5, 0.6, -0.7, 0.8, 0.9, -1.0]


def certified(distances=DISTANCES, **settings) -> Certificates:
    return Smoothing(SIGMA, **settings).certify(PLANE, PLANE.at(distances))


def test_certified_radii_are_slightly_below_the_true_ones():
    found, true = certified(n=10_000), torch.tensor(DISTANCES, dtype=torch.float64).abs()
    sides = (torch.tensor(DISTANCES) > 0).long()
    assert torch.equal(found.classes, sides)
    assert torch.equal(found.predictions, sides)
    assert (found.radii <= true).all()
    assert (found.radii > 0.9 * true).all()


def test_abstains_on_the_plane():
    found = certified([0.0] * 5, n=2000)
    assert (found.classes == ABSTAINS).all()
    assert (found.radii == 0).all()
    assert (found.predictions == ABSTAINS).all()
    assert found.abstained().value == 1
    assert not found.certified(torch.zeros(5, dtype=torch.int64), 0).any()


@settings(max_examples=10, deadline=None)
@given(distance=st.floats(0.05, 1.5), seed=st.integers(0, 2**20))
def test_certified_radius_is_at_most_the_true_one(distance, seed):
    assert float(certified([distance], n=500, alpha=1e-6, seed=seed).radii[0]) <= distance


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 3000), fraction=st.floats(0, 1), alpha=st.floats(1e-6, 0.999))
def test_radius_is_the_quantile_of_the_exact_lower_bound(n, fraction, alpha):
    votes = round(fraction * n)
    low = beta.ppf(alpha, votes, n - votes + 1) if votes else 0.0
    expected = SIGMA * norm.ppf(low) if low > 0.5 else 0.0
    assert certificate(votes, n, SIGMA, alpha) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(first=st.integers(0, 300), second=st.integers(0, 300), alpha=st.floats(1e-4, 0.5))
def test_majority_is_a_binomial_test(first, second, alpha):
    found = majority(torch.tensor([second, 0, first]), alpha)
    if first + second == 0 or binomtest(first, first + second).pvalue > alpha:
        assert found == ABSTAINS
    else:
        assert found == (2 if first > second else 0)


def test_results_depend_on_the_seed_but_not_on_the_batch_size():
    first = certified(n=700, n0=30)
    for size in (1, 100, 129, 5000):
        again = certified(n=700, n0=30, batch_size=size)
        assert torch.equal(first.radii, again.radii), size
        assert torch.equal(first.predictions, again.predictions)
    assert not torch.equal(first.radii, certified(n=700, n0=30, seed=1).radii)


def test_noise_depends_on_image_and_purpose_only():
    smoothing, x, reported = Smoothing(SIGMA, n0=300, n=300), PLANE.at([*DISTANCES, 0.0]), []
    found = smoothing.certify(PLANE, x, progress=reported.append)
    assert reported == list(range(1, 9))
    assert torch.equal(smoothing.certify(PLANE, x[2:4], numbers=[2, 3]).radii, found.radii[2:4])
    copies = smoothing.certify(PLANE, x[:1].expand(4, -1, -1, -1)).radii
    assert len(set(copies.tolist())) > 1
    # Equal noise for selection and estimation would make the bound too large.
    assert not torch.equal(*(smoothing._votes(PLANE, x[-1], 0, name, 300) for name in ("selection", "estimation")))


def test_undefined_logits_do_not_vote():
    class Broken(nn.Module):
        def forward(self, x):
            logits = torch.stack([torch.ones(len(x)), torch.zeros(len(x))], 1)
            logits[x.flatten(1)[:, 0] > 0] = torch.nan
            return logits

    found = Smoothing(SIGMA, n=400).certify(Broken(), torch.zeros(1, *SHAPE))
    assert found.classes.tolist() == [ABSTAINS]  # half of the samples vote for class 0, the others for none
    assert found.predictions.tolist() == [ABSTAINS]  # none may be as frequent


def test_accuracies_decrease_with_the_radius():
    found, y = certified(n=500), torch.tensor([1, 0, 1, 0, 0, 1, 0])  # one label is wrong
    assert found.clean(y).correct == found.accuracy(y, 0).correct == 6
    fractions = [found.accuracy(y, radius).value for radius in (0, 0.4, 0.6, 0.8, 2)]
    assert fractions == sorted(fractions, reverse=True)
    assert fractions[-1] == 0 < fractions[1]
    assert 0 < found.clean(y).low < found.clean(y).high < 1
    smoothing = Smoothing(SIGMA, n=500)
    assert smoothing.largest_radius == pytest.approx(SIGMA * norm.ppf(0.001 ** (1 / 500)))
    labels = draw_certified(found, y, smoothing, "headline").axes[0].get_legend_handles_labels()[1]
    assert "maximum that 500 samples can certify" in labels


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigma": 0}, "sigma=0.*--sigma 0.25"),
        ({"sigma": math.nan}, "sigma=nan"),
        ({"alpha": 0}, "alpha=0.*--alpha 0.001"),
        ({"alpha": 1}, "alpha=1"),
        ({"n": 0}, "n=0.*--samples 100 10000"),
        ({"n0": 0}, "n0=0"),
        ({"batch_size": 0}, "--batch_size 1024"),
    ],
)
def test_invalid_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        Smoothing(**{"sigma": SIGMA} | arguments)
