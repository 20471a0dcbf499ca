"""Saliency maps of functions whose important pixels are known."""

import pytest
import torch
from helpers.fakes import images, tiny_classifier

from lightning_paf.analysis.saliency import areas, compare_saliency, draw_saliency, overlap


def brightness(x):
    """Logits whose class 1 depends on the brightness of the left half."""
    return torch.stack([torch.zeros(len(x)), 200 * (x[..., :2].mean((1, 2, 3)) - 0.6)], 1)


X = torch.zeros(2, 1, 4, 4)
X[..., :2] = 1  # the mean is 1/2
LEFT = X[:, 0]


def test_overlap():
    saliency = torch.rand(3, 10, 10)
    assert torch.equal(overlap(saliency, saliency), torch.ones(3))
    assert torch.equal(overlap(saliency, -saliency), torch.zeros(3))
    by_chance = overlap(torch.rand(400, 10, 10), torch.rand(400, 10, 10)).mean()
    assert by_chance == pytest.approx(0.18, abs=0.01)


def test_correct_map_deletes_and_inserts_faster_than_its_negative():
    y = torch.ones(2, dtype=torch.int64)
    correct, wrong = areas(brightness, X, y, LEFT), areas(brightness, X, y, -LEFT)
    assert (correct[0] < wrong[0]).all()
    assert (correct[1] > wrong[1]).all()
    assert all((area >= 0).all() and (area <= 1).all() for area in (*correct, *wrong))


def test_areas_of_a_constant_prediction_are_its_probability():
    logits = torch.tensor([[0.0, 1.0]])
    for area in areas(lambda x: logits.expand(len(x), 2), X, torch.ones(2, dtype=torch.int64), LEFT):
        torch.testing.assert_close(area, logits.softmax(1)[0, 1].expand(2))


def test_both_maps_of_a_model_and_their_figure():
    model, (x, _) = tiny_classifier(), images()
    found = compare_saliency(model, x, grid=4)
    for one in (found.gradient, found.perturbation):
        assert one.saliency.shape == (8, 8, 8)
        assert (one.saliency >= 0).all()
        assert one.deletion.shape == one.insertion.shape == (8,)
    torch.testing.assert_close(found.overlap, overlap(found.gradient.saliency, found.perturbation.saliency))
    assert len(draw_saliency(x[:3], found, "title").axes) == 9
