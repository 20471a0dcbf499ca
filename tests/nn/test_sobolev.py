"""Sobolev gradient: eigenfunctions, symmetry and smoothing."""

import math

import pytest
import torch

from lightning_paf.nn.sobolev import sobolev_gradient


def cells(t_end, n):
    return (torch.arange(n, dtype=torch.float64) + 0.5) * t_end / n


@pytest.mark.parametrize("t_end", [0.5, 3.0, 40.0])
@pytest.mark.parametrize("m", [0, 1, 2, 5])
def test_cosines_are_damped_by_their_frequency_and_constants_stay(m, t_end):
    errors = []
    for n in (200, 400):
        u = torch.cos(m * math.pi * cells(t_end, n) / t_end)
        expected = u / (1 + (m * math.pi / t_end) ** 2)
        errors.append(float((sobolev_gradient(u, t_end) - expected).abs().max()))
    assert errors[1] < max(2e-3 * t_end / 40, 1e-4)
    assert errors[1] < errors[0] / 3.5 or errors[1] < 1e-12, "second order"


def test_the_map_is_self_adjoint():
    torch.manual_seed(0)
    u, v = torch.randn(2, 50, 3, 4, dtype=torch.float64)
    torch.testing.assert_close((sobolev_gradient(u, 2.0) * v).sum(), (u * sobolev_gradient(v, 2.0)).sum())


def test_it_smooths():
    torch.manual_seed(0)
    u = torch.randn(60, 20, dtype=torch.float64)
    before, after = (z.diff(dim=0).abs().sum(0) for z in (u, sobolev_gradient(u, 3.0)))
    assert (after < 0.2 * before).all()


def test_a_long_interval_does_not_overflow_and_a_short_one_takes_the_mean():
    torch.manual_seed(0)
    u = torch.randn(30, 2)
    assert sobolev_gradient(u, 5000.0).isfinite().all()
    torch.testing.assert_close(sobolev_gradient(u, 1e-3), u.mean(0).expand(30, 2), atol=1e-5, rtol=1e-5)
