"""Closed forms of the profile."""

import math

import pytest
import torch

from lightning_paf.analysis.min_max import min_max_profile


def test_equal_weights():
    found = min_max_profile(torch.full((3, 4), -0.3))
    assert (found.vanishing, found.gini) == (0, pytest.approx(0))
    assert found.ratio == pytest.approx(math.sqrt(12))


def test_a_single_weight():
    w = torch.zeros(2, 5)
    w[1, 2] = 7
    found = min_max_profile(w)
    assert found.vanishing == 0.9
    assert found.gini == pytest.approx(0.9)
    assert found.ratio == pytest.approx(1)
    assert found.kurtosis == pytest.approx((0.1 * 0.9**4 + 0.9 * 0.1**4) / (0.1 * 0.9**2 + 0.9 * 0.1**2) ** 2)


def test_gaussian_weights_have_kurtosis_3_and_a_known_gini():
    found = min_max_profile(torch.randn(200_000, generator=torch.Generator().manual_seed(0)))
    assert found.kurtosis == pytest.approx(3, abs=0.05)
    assert found.gini == pytest.approx(math.sqrt(2) - 1, abs=0.005)  # of the half-normal distribution


def test_scale_has_no_influence():
    w = torch.randn(40, dtype=torch.float64)
    one, other = (vars(min_max_profile(factor * w)) for factor in (1, -1e-4))
    assert one == pytest.approx(other)


def test_zero_weights_are_rejected():
    with pytest.raises(ValueError, match="all 0"):
        min_max_profile(torch.zeros(4))
