"""Final losses over random starts, for a linear model (one maximum) and a model with two maxima."""

import itertools

import pytest
import torch
from torch import nn

from lightning_paf.analysis.concentration import Concentration, concentration, draw_concentration, spread_text
from lightning_paf.attacks import PGD
from lightning_paf.functional.losses import cross_entropy


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 12, generator=torch.Generator().manual_seed(0)))

    def forward(self, x):
        return x.flatten(1) @ self.weight.T


class TwoMaxima(nn.Module):
    """The logit of class 1 grows with |mean(x) - 1/2|, faster on one side; the start determines the maximum."""

    def forward(self, x):
        offset = x.mean((1, 2, 3)) - 0.5
        return torch.stack([torch.zeros_like(offset), torch.where(offset > 0, 40 * offset, -10 * offset)], 1)


X, Y = torch.full((4, 3, 2, 2), 0.5), torch.tensor([0, 1, 2, 0])


def test_all_starts_reach_the_maximum_of_a_linear_model():
    model = Linear()
    two = Y.clamp_max(1)
    weights = model.weight.detach()[:2]
    model.weight = nn.Parameter(weights)  # two classes: the direction is the same everywhere
    found = concentration(model, X, two, PGD(0.1, step_size=0.05, steps=5), starts=6)
    way = torch.stack([weights[1 - label] - weights[label] for label in two]).sign().view_as(X)
    best = cross_entropy(model(X + 0.1 * way), two)
    torch.testing.assert_close(found.losses, best.expand(6, 4).detach())
    assert found.spread.max() < 1e-5
    assert found.distance.max() < 1e-5


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_both_maxima_are_found(norm):
    """The maxima are 2 eps apart, and about half of the starts end in each."""
    torch.manual_seed(0)
    x, y = torch.full((3, 1, 1, 1), 0.5), torch.zeros(3, dtype=torch.int64)
    found = concentration(TwoMaxima(), x, y, PGD(0.1, norm=norm, step_size=0.05, steps=8), starts=20)
    ends = cross_entropy(TwoMaxima()(torch.tensor([0.4, 0.6]).view(2, 1, 1, 1)), y[:2])
    assert torch.cdist(found.losses.view(-1, 1), ends.view(-1, 1)).amin(1).max() < 1e-5
    assert found.spread.min() > 0.2
    assert 0.5 < found.distance.mean() < 1.5


@pytest.mark.parametrize(("start", "starts"), [("none", 5), ("uniform", 1)])
def test_fewer_than_two_random_starts_are_rejected(start, starts):
    with pytest.raises(ValueError, match="start must be random and starts at least 2"):
        concentration(Linear(), X, Y, PGD(0.1, step_size=0.05, steps=2, start=start), starts=starts)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 300.0])
def test_equal_losses_are_visible_in_the_figure(scale):
    """Bars are wider than 4 pixels, and the labels of the axis do not overlap."""
    losses = scale * (1 + 1e-6 * torch.randn(30, 3))
    figure = draw_concentration(Concentration(losses, torch.full((3,), scale / 10), torch.zeros(3)), "headline")
    figure.canvas.draw()
    for axes in figure.axes:
        bars = [bar for bar in axes.patches if bar.get_height() > 0]
        assert sum(bar.get_height() for bar in bars) == 30
        assert all(bar.get_window_extent().width > 4 for bar in bars), "pixels"
        low, high = axes.get_xlim()
        labels = [label for label in axes.get_xticklabels() if low <= label.get_position()[0] <= high]
        extents = [label.get_window_extent() for label in labels]
        assert len(extents) >= 2
        assert all(left.x1 + 4 < right.x0 for left, right in itertools.pairwise(extents))


def test_figure_of_zero_losses_has_an_axis():
    figure = draw_concentration(Concentration(torch.zeros(5, 1), torch.zeros(1), torch.zeros(1)), "headline")
    assert figure.axes[0].get_xlim() == (0, 1)


@pytest.mark.parametrize(
    ("spread", "text"), [(0.000031, "0.0031 %"), (0.123, "12 %"), (0.9951, "100 %"), (2.5, "250 %"), (0, "0 %")]
)
def test_spread_has_two_significant_digits(spread, text):
    assert spread_text(spread) == text
