"""Metrics on models with a known boundary and slope."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_paf.attacks import FGSM
from lightning_paf.experiments import find_experiment, shape_metrics
from lightning_paf.experiments.metrics import attack_success, average_radius, empirical_lipschitz, robust_in_expectation
from lightning_paf.nn.activations import PSiLU, PSSiLU, ReLU
from lightning_paf.nn.activations.shape import pssilu_shape


class Threshold(nn.Module):
    """Class 1 where the mean pixel exceeds 0.5: logits (0, 10 (mean - 0.5))."""

    def forward(self, x):
        score = 10 * (x.mean((1, 2, 3)) - 0.5)
        return torch.stack([torch.zeros_like(score), score], dim=1)


GREYS = (0.4, 0.45, 0.7, 0.8)
X = torch.tensor(GREYS).reshape(-1, 1, 1, 1).expand(-1, 1, 4, 4)
Y = torch.tensor([0, 0, 1, 0])  # the last one is misclassified


def test_the_average_radius_is_the_mean_distance_to_the_boundary():
    assert average_radius(Threshold(), X, Y, most=0.5) == pytest.approx((0.1 + 0.05 + 0.2) / 3, abs=0.5 / 2**11)


def test_a_robust_image_counts_with_the_largest_radius():
    assert average_radius(Threshold(), X[2:3], Y[2:3], most=0.1) == pytest.approx(0.1, abs=0.1 / 2**10)
    assert math.isnan(average_radius(Threshold(), X[3:], Y[3:], most=0.1))


def test_the_lipschitz_estimate_of_a_linear_model_is_its_slope():
    assert empirical_lipschitz(Threshold(), X, Y, eps=0.05) == pytest.approx(10, rel=1e-4)


def test_success_counts_correctly_classified_images_only():
    metric = attack_success(FGSM(0.12), images=4)
    assert metric(SimpleNamespace(model=Threshold()), X, Y) == pytest.approx(2 / 3)


@pytest.mark.parametrize("eps", [0.02, 0.07, 0.3])
def test_expectations_of_a_network_that_is_not_random_are_its_predictions(eps):
    found = robust_in_expectation(eps, draws=3)(SimpleNamespace(model=Threshold()), X, Y)
    assert found.tolist() == [eps < 0.1, eps < 0.05, eps < 0.2, False]


def test_metrics_of_the_activation_are_its_parameters_and_closed_forms():
    def measure(metric, activation):
        return metric(SimpleNamespace(model=nn.Sequential(nn.Conv2d(1, 1, 1), activation)), X, Y)

    bent = PSSiLU(alpha=3, beta=-0.2)
    assert measure(shape_metrics.alpha, bent) == 3
    assert measure(shape_metrics.beta, bent) == pytest.approx(0.2)
    assert measure(shape_metrics.of_shape("max_curvature"), bent) == pytest.approx(3 / 1.6)
    expected = pssilu_shape(2, 0).mean_on_negative
    assert measure(shape_metrics.of_shape("mean_on_negative"), PSiLU(2)) == pytest.approx(expected)
    assert math.isnan(measure(shape_metrics.alpha, ReLU())), "ReLU has no alpha"
    assert measure(shape_metrics.of_shape("max_curvature"), ReLU()) == math.inf


def test_the_certified_fraction_is_that_of_the_radius_of_the_training():
    """A linear network is certified up to its distance to the boundary, and misclassified images never are."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[0.0], [10 / 16]]).expand(2, 16))
        net[1].bias.copy_(torch.tensor([0.0, -5.0]))
    for eps, certified in ((0.02, [True, True, True, False]), (0.07, [True, False, True, False])):
        run = SimpleNamespace(model=net.eval(), module=SimpleNamespace(attack=FGSM(eps)))
        for metric in find_experiment("certified").metrics.values():
            assert metric(run, X, Y).tolist() == certified
