"""Exact decisions, against brute force in two dimensions and against attacks."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from lightning_paf.attacks import SmoothedPGD
from lightning_paf.evaluation.certificates.chain import affine_layers
from lightning_paf.evaluation.certificates.exact import Decision, decide
from lightning_paf.functional import margin
from lightning_paf.nn.classifier import Classifier
from lightning_paf.specs import DatasetSpec

EPS, SPEC = 0.2, DatasetSpec("six", 3, 6, (0.3,), (0.4,))


def network(seed, *widths):
    torch.manual_seed(seed)
    layers = [nn.Flatten()]
    for inner, outer in pairwise(widths):
        layers += [nn.Linear(inner, outer), nn.ReLU()]
        layers[-2].weight.data *= 3
    return nn.Sequential(*layers[:-1]).eval().requires_grad_(False)


def grid(x, points=201):
    """All images (P, 1, 1, 2) of a grid on the box."""
    sides = [torch.linspace(max(v - EPS, 0), min(v + EPS, 1), points) for v in x.flatten().tolist()]
    return torch.cartesian_prod(*sides).view(-1, 1, 1, 2)


@pytest.mark.parametrize("seed", range(12))
def test_decisions_are_those_of_a_grid_in_two_dimensions(seed):
    net = network(seed, 2, 6, 6, 3)
    x = torch.rand(1, 1, 1, 2)
    y = net(x).argmax(1)
    worst = margin(net(grid(x)), y.expand(201**2)).max().item()
    found = decide(net, x, y, EPS)
    assert found.decision is (Decision.VIOLATED if worst > 0 else Decision.PROVEN), worst
    if found.decision is Decision.VIOLATED:
        assert (found.witness - x).abs().max() <= EPS
        assert found.witness.aminmax().min >= 0
        assert found.witness.aminmax().max <= 1
        assert net(found.witness).argmax(1) != y


def test_both_decisions_occur_and_agree_with_the_search():
    decisions = []
    for seed in range(12):
        net = network(seed, 4, 8, 8, 3)
        x = torch.rand(1, 1, 2, 2)
        y = net(x).argmax(1)
        found = decide(net, x, y, 0.1).decision
        fooled = not torch.equal(SmoothedPGD(0.1)(net, x, y), x)
        assert found is (Decision.VIOLATED if fooled else Decision.PROVEN)
        decisions.append(found)
    assert len(set(decisions)) == 2


def test_a_misclassified_image_is_its_own_witness_and_no_time_leaves_images_undecided():
    net = network(0, 16, 40, 40, 3)
    x = torch.rand(1, 1, 4, 4)
    y = net(x).argmin(1)
    assert decide(net, x, y, 0.01).decision is Decision.VIOLATED
    assert decide(net, x, net(x).argmax(1), 0.3, time_limit=1e-3).decision is Decision.UNDECIDED


def test_convolutions_and_normalisation_are_one_matrix_each():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Sequential(nn.AvgPool2d(2), nn.Flatten()))
    model = Classifier(nn.Sequential(*net, nn.ReLU(), nn.Linear(8, 3)), SPEC)
    model(torch.rand(20, 1, 6, 6))
    model.eval().double().requires_grad_(False)
    x = torch.rand(5, 1, 6, 6, dtype=torch.float64)
    layers, out = affine_layers(model, x[:1]), x.flatten(1)
    for number, (weight, bias) in enumerate(layers):
        out = (out if number == 0 else out.relu()) @ weight.T + bias
    torch.testing.assert_close(out, model(x))


def test_other_layers_and_several_images_are_refused():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.SiLU(), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"Layers must be affine or ReLU, in a chain, .* got SiLU"):
        decide(net, torch.rand(1, 1, 2, 2), torch.tensor([0]), 0.1)
    with pytest.raises(ValueError, match="x must be one image, got 2"):
        decide(net[:2], torch.rand(2, 1, 2, 2), torch.tensor([0, 0]), 0.1)
