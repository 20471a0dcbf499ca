"""Quantiles of gamma distributions."""

import math

import torch

from lightning_paf.functional.gamma import gamma_quantiles

LEVELS = torch.tensor([[0.05], [0.5], [0.95]], dtype=torch.float64)


def values(*numbers):
    return torch.tensor(numbers, dtype=torch.float64, requires_grad=True)


def test_those_of_an_exponential_distribution_are_closed():
    found = gamma_quantiles(values(1, 1), values(1, 4), LEVELS)
    expected = torch.tensor(
        [[-math.log(1 - u) / rate for rate in (1, 4)] for u in LEVELS.flatten()], dtype=torch.float64
    )
    torch.testing.assert_close(found, expected)


def test_they_are_fractions_of_samples():
    concentration, rate = torch.tensor([0.3, 5.0]), torch.tensor([2.0, 0.5])
    samples = torch.distributions.Gamma(concentration, rate).sample((20_000,))
    fractions = (samples[:, None] <= gamma_quantiles(concentration, rate, LEVELS)).double().mean(0)
    assert (fractions - LEVELS).abs().max() < 0.015


def test_derivatives_are_those_of_differences():
    arguments = (values(0.4, 1, 50), values(2, 1, 0.1))
    torch.autograd.gradcheck(lambda a, b: gamma_quantiles(a, b, LEVELS), arguments)
    torch.autograd.gradgradcheck(lambda a, b: gamma_quantiles(a, b, LEVELS), arguments)


def test_tiny_and_undefined_parameters_give_zero_and_nan():
    found = gamma_quantiles(torch.tensor([1e-3, math.nan]), torch.tensor([1.0, 1.0]), LEVELS[:1])
    assert found[0, 0] == 0
    assert found[0, 1].isnan()
