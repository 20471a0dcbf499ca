"""Attacks find images with undefined logits, and survive gradients that are not finite."""

import pytest
import torch
from helpers.every_attack import assert_allowed, attacks, batch, network
from torch import nn

from lightning_paf.attacks import APGD, FAB, MIFGSM, PGD, Square
from lightning_paf.functional import misclassified

pytestmark = pytest.mark.usefixtures("short_budgets")

GRID = 64
NAN, INF = torch.nan, torch.inf


def row_logits(x):
    return 10 * (x[:, 0, :5].mean(2) - x.flatten(1).mean(1, keepdim=True))


class UndefinedOffTheGrid(nn.Module):
    """Class k where the mean of row k is largest; a change of any pixel makes the logits undefined."""

    def __init__(self, own, other):
        super().__init__()
        self.own, self.other = own, other

    def forward(self, x):
        means = row_logits(x)
        first = torch.zeros_like(means).scatter(1, means.argmax(1, keepdim=True), 1.0).bool()
        last = torch.zeros_like(means).scatter(1, means.argmin(1, keepdim=True), 1.0).bool()
        broken = torch.where(first, self.own, torch.where(last, self.other, means))
        scaled = GRID * x.detach().flatten(1)
        off = ((scaled != scaled.round()) | (scaled >= GRID - 1)).any(1, keepdim=True)
        return torch.where(off & broken.isfinite().logical_not(), broken, means)


def grid_batch():
    """Images for `UndefinedOffTheGrid` whose class no change of 8/255 alters."""
    y = torch.arange(6) % 5
    x = torch.full((6, 1, 8, 8), 24 / GRID)
    x[torch.arange(6), 0, y] = 29 / GRID
    return x, y


UNDEFINED = {
    "all NaN": (NAN, NAN),
    "only another logit NaN": (0.0, NAN),
    "the label's logit +inf": (INF, 0.0),
    "another logit -inf": (0.0, -INF),
}
undefined = pytest.mark.parametrize("values", UNDEFINED.values(), ids=UNDEFINED)


def assert_found(attack, model, x, y):
    """Every image is misclassified only after the attack, which is allowed to do so."""
    assert not misclassified(model(x), y).any()
    torch.manual_seed(0)
    x_adv = attack(model, x, y)
    assert_allowed(attack, x, x_adv)
    assert misclassified(model(x_adv), y).all()


@undefined
@attacks
def test_images_with_undefined_logits_are_found(attack, values):
    assert_found(attack, UndefinedOffTheGrid(*values), *grid_batch())


@undefined
@pytest.mark.parametrize(
    "attack",
    [
        PGD(0.2, step_size=0.05, best=True, norm="l2"),
        APGD(0.2, norm="l2", steps=10),
        FAB(0.2, norm="l2", steps=20),
        Square(0.2, norm="l2", queries=60),
    ],
    ids=lambda attack: attack.label,
)
def test_images_with_undefined_logits_are_found_in_l2(attack, values):
    assert_found(attack, UndefinedOffTheGrid(*values), *grid_batch())


class UndefinedInAShell(UndefinedOffTheGrid):
    """Undefined where the largest change is a fifth to three fifths of 8/255, defined beyond."""

    def forward(self, x):
        far = (GRID / 4 * x.detach().flatten(1) - (GRID / 4 * x.detach().flatten(1)).round()).abs().amax(1) * 4 / GRID
        shell = (far > 0.2 * 8 / 255) & (far < 0.6 * 8 / 255)
        return torch.where(shell[:, None], super().forward(x), row_logits(x))


@undefined
@pytest.mark.parametrize(
    "attack",
    [MIFGSM(8 / 255), *(PGD(8 / 255, step_size=1 / 255, steps=12, start="none", best=best) for best in (False, True))],
    ids=["mifgsm", "pgd", "best"],
)
def test_attack_stays_where_the_logits_are_undefined(attack, values):
    model, (x, _) = UndefinedInAShell(*values), grid_batch()
    x = (x * GRID / 4).round() * 4 / GRID
    assert_found(attack, model, x, model(x).argmax(1))


@attacks
def test_model_without_any_defined_logit(attack):
    x, y = batch()
    x_adv = attack(AlwaysUndefined(), x, y)
    assert_allowed(attack, x, x_adv)
    assert misclassified(AlwaysUndefined()(x_adv), y).all()


class AlwaysUndefined(nn.Module):
    def forward(self, x):
        return x[:, 0, :5].mean(2) * torch.nan


class Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, value):
        ctx.value = value
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        gradient[:, :, ::2] = ctx.value
        return gradient, None


class WithGradient(nn.Module):
    """The network, with another gradient in every second row of pixels."""

    def __init__(self, value):
        super().__init__()
        self.net, self.value = network().eval(), value

    def forward(self, x):
        return self.net(Backward.apply(x, self.value))


@attacks
def test_nan_in_a_gradient_counts_as_zero(attack):
    x, y = batch()
    found = []
    for value in (torch.nan, 0.0):
        torch.manual_seed(5)
        found.append(attack(WithGradient(value), x, y))
    assert torch.equal(*found)


@attacks
def test_infinite_gradients_leave_images_allowed(attack):
    x, y = batch()
    assert_allowed(attack, x, attack(WithGradient(-torch.inf), x, y))
