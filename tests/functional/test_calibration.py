"""Reliability and risk-coverage curves."""

import pytest
import torch

from lightning_paf.evaluation.confidence import confidence_figure, described
from lightning_paf.functional.calibration import reliability, risk_coverage


def test_a_perfect_classifier_has_no_risk():
    y = torch.arange(4)
    found = described(torch.eye(4), y)
    assert (found["aurc"], found["ece"], found["nll"], found["brier"]) == pytest.approx((0, 0, 0, 0))
    assert found["reliability"] == [(1, 1, 4)]
    assert found["risks"] == [0] * 20


def test_a_constant_classifier_has_its_error_as_risk_at_every_coverage():
    y = torch.tensor([0, 0, 1, 1, 1, 1, 2, 0])
    constant = torch.tensor([[0.5, 0.3, 0.2]]).expand(8, 3)
    for order in (torch.arange(8), torch.randperm(8)):
        torch.testing.assert_close(risk_coverage(constant, y[order]), torch.full((8,), 5 / 8, dtype=torch.float64))
    found = described(constant, y)
    assert (found["error"], found["aurc"]) == pytest.approx((5 / 8, 5 / 8))
    assert found["ece"] == pytest.approx(abs(0.5 - 3 / 8), abs=1e-6)
    assert found["reliability"] == [pytest.approx((0.5, 3 / 8, 8))]


def test_the_risk_is_the_error_of_the_most_confident():
    probabilities = torch.tensor([[0.6, 0.4], [0.9, 0.1], [0.3, 0.7], [0.8, 0.2]])
    y = torch.tensor([1, 0, 1, 1])  # by confidence: right, wrong, right, wrong
    assert risk_coverage(probabilities, y).tolist() == pytest.approx([0, 1 / 2, 1 / 3, 2 / 4])
    assert described(probabilities, y)["aurc"] == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)


def test_the_bins_weigh_up_to_the_calibration_error():
    probabilities = torch.rand(200, 5).softmax(1)
    y = torch.randint(5, (200,))
    bins = reliability(probabilities, y)
    error = sum(count * abs(confidence - accuracy) for confidence, accuracy, count in bins) / 200
    found = described(probabilities, y)
    assert found["ece"] == pytest.approx(error, abs=1e-5)
    assert confidence_figure({"clean": found, "attacked": found}).startswith(b"\x89PNG")
