"""FMN and sigma-zero: distances of linear models, and bad settings."""

import pytest
import torch
from helpers.digits_net import digits
from torch import nn

from lightning_paf.attacks import FMN, DeepFool, SigmaZero
from lightning_paf.functional import geometry_of


def linear(n=6, size=16):
    """Two classes, and images far enough from the ends of the pixel range; the weights of the difference."""
    torch.manual_seed(2)
    weight = torch.linspace(-1, 1.4, size)[torch.randperm(size)]
    net = nn.Sequential(nn.Flatten(), nn.Linear(size, 2)).requires_grad_(False)
    net[1].weight.copy_(torch.stack((-weight / 2, weight / 2)))
    net[1].bias.copy_(torch.stack((weight.sum(), -weight.sum())) / 4)
    x = 0.5 + (torch.rand(n, 1, 4, 4) - 0.5) / 5
    return net, x, net(x).argmax(1), weight


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2), ("l1", torch.inf)])
def test_fmn_finds_the_distance_of_a_hyperplane(norm, dual):
    net, x, y, weight = linear()
    logits = net(x)
    exact = (logits[:, 0] - logits[:, 1]).abs() / torch.linalg.vector_norm(weight, dual)
    found, distances = FMN(norm=norm, steps=200).nearest(net, x, y)
    assert (net(found).argmax(1) != y).all()
    torch.testing.assert_close(distances, geometry_of(norm).size(found - x))
    assert (distances >= exact * (1 - 1e-4)).all()
    assert (distances <= exact * 1.03 + 1e-3).all()


def test_fmn_is_not_worse_than_deepfool_on_a_network():
    net, x, y = digits(12)
    ours, theirs = (attack.nearest(net, x, y)[1] for attack in (FMN(steps=60), DeepFool()))
    assert ours.isfinite().all()
    assert ours.median() <= theirs.median() * 1.01


def test_sigma_zero_finds_the_fewest_entries_of_a_linear_model():
    net, x, y, weight = linear()
    logits = net(x)
    gap = (logits[:, 1] - logits[:, 0]).abs()
    toward = torch.where(y == 0, 1.0, -1.0)[:, None] * weight  # of a change of each entry
    gains = torch.where(toward > 0, toward * (1 - x.flatten(1)), -toward * x.flatten(1))
    fewest = (gains.sort(dim=1, descending=True).values.cumsum(1) < gap[:, None]).sum(1) + 1
    found, distances = SigmaZero(steps=300).nearest(net, x, y)
    assert (net(found).argmax(1) != y).all()
    assert distances.equal((found != x).flatten(1).sum(1).to(x.dtype))
    assert (distances >= fewest).all()
    assert (distances <= fewest + 1).all()


def test_sigma_zero_counts_a_distance_of_exactly_its_entries():
    net, x, y, _ = linear()
    _, distances = SigmaZero(steps=100).nearest(net, x, y)
    most = int(distances.max())
    assert (net(SigmaZero(most, steps=100)(net, x, y)).argmax(1) != y).all()
    fewer = SigmaZero(most - 1, steps=100)(net, x, y) if most > 1 else x
    assert torch.equal(fewer[distances == most], x[distances == most])


@pytest.mark.parametrize("attack", [FMN(steps=5), SigmaZero(steps=5)])
def test_misclassified_images_have_the_distance_0(attack):
    net, x, y, _ = linear()
    found, distances = attack.nearest(net, x, 1 - y)
    assert torch.equal(found, x)
    assert distances.tolist() == [0] * 6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FMN(steps=0), "steps must be at least 1, got 0"),
        (lambda: FMN(step_size=0.0), "step_size must be positive and finite"),
        (lambda: FMN(gamma=1.0), r"gamma must be in \(0, 1\), got 1.0"),
        (lambda: SigmaZero(0), "entries must be at least 1, got 0"),
        (lambda: SigmaZero(sigma=0.0), "sigma must be positive and finite"),
    ],
)
def test_settings_outside_their_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
