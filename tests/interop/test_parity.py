"""Comparison of a network with its export: logits and misclassified images."""

import copy

import pytest
import torch
from helpers.fakes import images, tiny_classifier
from torch import nn

from lightning_paf.interop.parity import compare


@pytest.fixture
def model():
    return tiny_classifier().eval()


def test_a_copy_agrees_and_kinds_are_reported_apart(model):
    x, _ = images(40)
    y = model(x).argmax(1)
    wrong = (y + (torch.arange(40) < 7)) % 10
    batches = [
        ("test image", x[:32], wrong[:32]),
        ("test image", x[32:], wrong[32:]),
        ("adversarial example", x, y + 1),
    ]
    clean, adversarial = compare(model, copy.deepcopy(model), batches)
    assert not clean.mismatches + adversarial.mismatches
    assert str(clean).startswith(
        "40 test images: logits differ by at most 0.0e+00; the network misclassifies 7, the export 7"
    )
    assert str(adversarial).endswith("the network misclassifies 40, the export 40 of these")


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_other_logits_are_a_mismatch_on_every_image(model, factor):
    other = copy.deepcopy(model)
    other.net.fc.weight.data *= factor
    (found,) = compare(model, other, [("test image", *images(12))])
    assert len(found.mismatches) == 12
    assert found.mismatches[0].startswith("test image 0: logits differ by")


def test_an_adversarial_example_that_fools_only_one_is_named(model):
    class Picky(nn.Module):
        """Differs from the network on grey images only."""

        def forward(self, x):
            grey = (x == 0.5).flatten(1).all(1)
            return torch.where(grey[:, None], 5 * torch.eye(10)[3], model(x))

    grey = torch.full((2, 3, 8, 8), 0.5)
    batches = [("test image", *images(12)), ("adversarial example", grey, torch.tensor([3, 3]))]
    clean, adversarial = compare(model, Picky(), batches)
    assert not clean.mismatches
    assert adversarial.mismatches[1].startswith("adversarial example 1: logits differ by")
    assert adversarial.mismatches[1].endswith(", only the network is wrong")
    assert "the network misclassifies 2, the export 0 of these" in str(adversarial)


def test_large_logits_are_compared_relatively(model):
    model.net.fc.weight.data *= 1e5
    other = copy.deepcopy(model)
    other.net.fc.weight.data *= 1 + 1e-6
    x, y = images(12)
    assert (other(x) - model(x)).abs().max() > 1e-3
    assert not compare(model, other, [("test image", x, y)])[0].mismatches
