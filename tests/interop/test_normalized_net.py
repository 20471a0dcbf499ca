"""Normalisation as part of a network, and its extraction from checkpoints."""

import math

import pytest
import torch
from helpers.fakes import TinyNet, images, spec

from lightning_paf.interop import NormalizedNet, Statistics, bare_net, split_statistics
from lightning_paf.nets import TimmNet
from lightning_paf.nn.classifier import Classifier

MEAN, STD = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]


def test_images_are_normalised_by_buffers_outside_the_state_dict():
    net, (x, _) = TinyNet().eval(), images()
    expected = net((x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1))
    torch.testing.assert_close(NormalizedNet(net, MEAN, STD).eval()(x), expected)
    assert set(NormalizedNet(net, MEAN, STD).state_dict()) == {f"net.{key}" for key in net.state_dict()}


@pytest.mark.parametrize(
    ("mean", "std"),
    [(MEAN, STD[:2]), ([], []), (MEAN, [0.5, 0.5, 0.0]), (MEAN, [0.5, 0.5, math.nan]), ([0.5, math.nan, 0.5], STD)],
)
def test_invalid_statistics_are_refused(mean, std):
    with pytest.raises(ValueError, match="one number for each channel"):
        NormalizedNet(TinyNet(), mean, std)


def test_the_head_of_a_library_network_is_found():
    net = NormalizedNet(TimmNet("resnet18", num_classes=10), MEAN, STD)
    assert Classifier(net, spec(), normalize=False).head is net.net.net.fc
    assert NormalizedNet(TinyNet(), MEAN, STD).get_classifier() is None


def test_two_normalisations_are_combined_and_none_is_none():
    net, (x, _) = TinyNet().eval(), images()
    model = Classifier(NormalizedNet(net, MEAN, STD), spec()).eval()
    bare, statistics = bare_net(model)
    assert bare is net
    torch.testing.assert_close(NormalizedNet(bare, list(statistics.mean), list(statistics.std)).eval()(x), model(x))
    assert bare_net(Classifier(TinyNet(), spec(), normalize=False))[1] is None


def test_statistics_are_compared_in_the_precision_of_the_model():
    wide = Statistics((0.4914,) * 3, (0.2471,) * 3)
    narrow = Statistics(tuple(torch.tensor(wide.mean).tolist()), tuple(torch.tensor(wide.std).tolist()))
    assert narrow != wide
    assert narrow.same_as(wide)
    assert not Statistics((0.4915,) * 3, (0.2471,) * 3).same_as(wide)
    assert not Statistics((0.5,), (0.25,)).same_as(wide)


@pytest.mark.parametrize("names", [("mean", "std"), ("mu", "sigma"), ("normalize.mean", "normalize.std")])
def test_buffers_of_a_normalisation_are_separated(names):
    buffers = dict(zip(names, (torch.full((1, 3, 1, 1), 0.5), torch.full((3,), 0.25)), strict=True))
    others, statistics = split_statistics({"conv.weight": torch.ones(3, 3), **buffers})
    assert set(others) == {"conv.weight"}
    assert statistics == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.mark.parametrize(
    "tensors",
    [
        {"mean": torch.full((3,), 0.5)},
        {"std": torch.full((3,), 0.5)},
        {"mean": torch.full((3,), float("nan")), "std": torch.ones(3)},
        {"mean": torch.full((3,), 0.5), "std": torch.ones(1)},
        {"mean": torch.full((3,), 0.5), "std": torch.ones(3), "net.std": torch.ones(3)},
        {"mean": torch.full((3,), 120.0), "std": torch.full((3,), 60.0)},
        {"mean": torch.full((3,), 0.5), "std": torch.zeros(3)},
    ],
)
def test_incomplete_statistics_or_those_of_grey_levels_are_refused(tensors):
    with pytest.raises(ValueError, match=r"must be one mean and one positive standard .* got .*divided by 255"):
        split_statistics(tensors)
