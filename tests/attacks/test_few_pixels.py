"""JSMA and the one-pixel attack: choices, budgets and memory format."""

import pytest
import torch
from helpers.digits_net import Recorder, digits, lambda_module
from helpers.fakes import images, tiny_classifier
from torch import nn

from lightning_paf.attacks import JSMA, OnePixel


def test_jsma_chooses_the_pair_with_the_largest_product():
    """Two classes of opposite weights: of all pairs that raise the target, the two largest entries together."""
    weight = torch.tensor([0.1, -0.5, 0.3, 0.7, 0.2])
    model = nn.Sequential(nn.Flatten(), nn.Linear(5, 2)).requires_grad_(False)
    model[1].weight.copy_(torch.stack((-weight, weight)))
    model[1].bias.copy_(torch.tensor([5.0, -5.0]))
    x = torch.full((1, 1, 1, 5), 0.5)
    changed = (JSMA(2)(model, x, torch.tensor([0])) != x).flatten()
    assert changed.tolist() == [False, False, True, True, False]


def test_one_pixel_stays_within_its_budgets():
    net, x, y = digits(4)
    recorder = Recorder(net)
    torch.manual_seed(0)
    x_adv = OnePixel(2, population=30, generations=5)(recorder, x, y)
    assert ((x_adv != x).any(1).flatten(1).sum(1) <= 2).all()
    own = net(x_adv).softmax(1).gather(1, y[:, None]) - net(x).softmax(1).gather(1, y[:, None])
    assert (own < 0).all()
    assert 4 * 31 <= recorder.seen <= 4 * (1 + 6 * 30)


def test_one_pixel_finds_the_only_pixel_that_matters():
    model = lambda_module(lambda z: torch.stack((0.5 - z[:, 0, 2, 5], z[:, 0, 2, 5] - 0.5), dim=1))
    x, y = torch.zeros(3, 1, 8, 8), torch.zeros(3, dtype=torch.long)
    torch.manual_seed(0)
    x_adv = OnePixel(population=100, generations=20)(model, x, y)
    assert (model(x_adv).argmax(1) == 1).all()
    with pytest.raises(ValueError, match="at most 3 channels for OnePixel, got 4"):
        OnePixel()(model, torch.zeros(1, 4, 8, 8), y[:1])


def test_channels_last_images_give_the_same_result():
    net, (x, y) = tiny_classifier().eval(), images(3)
    expected = JSMA(4)(net, x, y)
    assert torch.equal(JSMA(4)(net, x.contiguous(memory_format=torch.channels_last), y), expected)
