"""Two networks that should be one: logits, a second attack, known adversarial examples."""

import copy

import numpy as np
import pytest
import torch
from stand_ins import images, tiny_classifier
from torch import nn

from lightning_paf.attacks import Attack
from lightning_paf.interop.parity import Bout, compare, fight


class Noise(Attack):
    """Random corners of the box: needs no gradients, as Square."""

    fixed_loss = True

    def perturb(self, forward, x, y, loss):
        return (x + self.radius * torch.randint_like(x, 2).mul(2).sub(1)).clamp(0, 1)


@pytest.fixture
def model():
    """Logits that vary from image to image, so that noise breaks some and not others."""
    model = tiny_classifier().eval()
    with torch.no_grad():
        model.net.fc.bias -= model(images(40)[0]).mean(0)
    return model


@pytest.fixture
def batch(model):
    x, _ = images(40)
    return x, model(x).argmax(1)


def compared(first, second, batch, known=(), eps=0.3):
    return compare(first, second, Noise(eps), np.arange(100, 100 + len(batch[1])), batch, known, seed=5)


def test_a_copy_agrees_in_everything(model, batch):
    found = compared(model, copy.deepcopy(model), batch, known=[batch])
    assert found.agrees
    assert found.difference == 0
    assert found.images == 40 + len(found.bout.examples[1]) + 40
    assert 0 < found.bout.first.sum() < 40, "an attack that breaks none or all compares nothing"
    assert (found.bout.first == found.bout.second).all()


def test_both_attacks_get_the_same_seed_and_leave_the_generator_alone(model, batch):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    bout = fight(model, copy.deepcopy(model), Noise(0.3), np.arange(40), *batch, seed=2)
    torch.testing.assert_close(torch.rand(3), expected)
    assert not bout.only_first
    assert not bout.only_second


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_other_logits_are_a_disagreement_on_every_image(model, batch, factor):
    other = copy.deepcopy(model)
    other.net.fc.weight.data *= factor
    found = compared(model, other, batch)
    assert not found.agrees
    assert len(found.disagreements) == found.images
    assert "test image 0: logits differ by" in found.evidence()


def test_an_adversarial_example_that_fools_only_one_is_named(model, batch):
    class Picky(nn.Module):
        """Differs from the network on grey images only, which no test image is."""

        def forward(self, x):
            grey = (x == 0.5).flatten(1).all(1)
            return torch.where(grey[:, None], 5 * torch.eye(10)[3], model(x))

    grey = torch.full((2, 3, 8, 8), 0.5)
    found = compared(model, Picky(), batch, known=[(grey, torch.tensor([3, 3]))])
    (first, second) = found.disagreements
    assert str(first).startswith("image of the receipt 0: logits differ by")
    assert str(second).endswith(", only the first is wrong")
    assert not found.agrees


def test_large_logits_are_compared_relatively(model, batch):
    model.net.fc.weight.data *= 1e5
    other = copy.deepcopy(model)
    other.net.fc.weight.data *= 1 + 1e-6
    assert (other(batch[0]) - model(batch[0])).abs().max() > 1e-3
    assert compared(model, other, batch).agrees


@pytest.mark.parametrize(
    ("only_first", "only_second", "differs"), [(5, 0, False), (6, 0, True), (9, 8, False), (0, 7, True)]
)
def test_a_difference_beyond_chance_fails(only_first, only_second, differs):
    n = 30
    first, second = np.ones(n, bool), np.ones(n, bool)
    second[:only_first] = False
    first[only_first : only_first + only_second] = False
    bout = Bout(np.arange(n), first, second, (torch.empty(0), torch.empty(0)))
    assert (len(bout.only_first), len(bout.only_second)) == (only_first, only_second)
    assert bout.differs is differs
