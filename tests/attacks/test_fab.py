"""Targeted FAB: closed forms on linear models, and agreement with the package."""

import math

import pytest
import torch
from helpers.digits_net import digits
from helpers.oracles import linear
from torch import nn

from lightning_paf.attacks import FAB
from lightning_paf.functional import geometry_of

EPS = {"linf": 0.12, "l2": 0.59}  # about half of the digits are robust
norms = pytest.mark.parametrize("norm", ["linf", "l2"])


class Counted(nn.Module):
    """Counts the images of each batch, with and without gradients; has a method `exact` if one is given."""

    def __init__(self, model, exact=None):
        super().__init__()
        self.model = model
        self.plain, self.with_gradient = [], []
        if exact is not None:
            self.exact = exact

    def forward(self, x):
        (self.with_gradient if x.requires_grad else self.plain).append(len(x))
        return self.model(x)


def robust(model, x, y):
    with torch.no_grad():
        return model(x).argmax(1) == y


@norms
@pytest.mark.parametrize("classes", [2, 3, 12])
def test_minimum_distance_of_a_linear_model(norm, classes):
    oracle = linear(classes, 24)
    x_adv, found = FAB(norm=norm).minimum(oracle.model, oracle.x, oracle.y)
    assert not robust(oracle.model, x_adv, oracle.y).any()
    torch.testing.assert_close(geometry_of(norm).size(x_adv - oracle.x), found)
    distance = torch.from_numpy(oracle.radii[norm])
    assert (found >= distance - 1e-6).all()
    assert (found <= 1.02 * distance).all()


@norms
def test_same_robust_images_as_the_package(norm):
    from pyautoattack.fab_pt import FABAttack_PT

    net, x, y = digits(40)
    package = FABAttack_PT(net, norm={"linf": "Linf", "l2": "L2"}[norm], eps=EPS[norm], targeted=True, n_iter=10)
    expected = robust(net, package.perturb(x.clone(), y), y)
    found = robust(net, FAB(EPS[norm], norm=norm, steps=10)(net, x, y), y)
    assert 10 < expected.sum() < 30
    assert (expected != found).sum() <= 1  # rounding


@norms
def test_same_distances_as_the_package(norm):
    from pyautoattack.fab_pt import FABAttack_PT

    net, x, y = digits(20)
    package = FABAttack_PT(net, norm={"linf": "Linf", "l2": "L2"}[norm], targeted=True, n_iter=10)
    expected = torch.full((20,), math.inf)
    for package.target_class in (2, 3):
        with torch.no_grad():
            images = package.attack_single_run(x, y, is_targeted=True)
        size = geometry_of(norm).size(images - x)
        expected = torch.where(size > 0, expected.minimum(size), expected)
    found = FAB(norm=norm, steps=10, targets=2).minimum(net, x, y)[1]
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7, 250])
def test_budget_of_robust_images(batch_size):
    net, x, y = digits(5)
    counted = Counted(net)
    x_adv = FAB(1e-4, steps=4, batch_size=batch_size)(counted, x, y)
    assert torch.equal(x_adv, x)
    assert sum(counted.with_gradient) == 5 * 9 * 4  # a gradient per step
    assert sum(counted.plain) == 5 + 5 * 9 * 4  # the ranking, and the prediction at each new point
    assert max(counted.with_gradient) == min(45, batch_size)


def test_fooled_images_leave_and_waiting_pairs_replace_them():
    net, x, y = digits(12)
    counted = Counted(net)
    stays = robust(net, FAB(0.12, steps=20, batch_size=10)(counted, x, y), y)
    assert 0 < stays.sum() < 12
    assert sum(counted.with_gradient) < 20 * 9 * stays.sum() + 20 * 2 * (~stays).sum()
    assert len(counted.with_gradient) * 10 - sum(counted.with_gradient) < 20 * 10  # lanes are empty at the end only


def test_search_ends_when_all_images_are_fooled():
    net, x, y = digits(8)
    counted = Counted(net)
    assert not robust(net, FAB(0.6, steps=50)(counted, x, y), y).any()
    assert len(counted.with_gradient) <= 3


@norms
def test_batch_size_does_not_change_the_result(norm):
    net, x, y = digits(12)
    sets = [robust(net, FAB(EPS[norm], norm=norm, steps=10, batch_size=size)(net, x, y), y) for size in (5, 250)]
    assert torch.equal(*sets)


def test_misclassified_images_are_returned_unchanged():
    net, x, y = digits(6)
    y = y.clone()
    y[2] = (y[2] + 1) % 10
    assert torch.equal(FAB(0.3, steps=5)(net, x, y)[2], x[2])
    x_adv, distance = FAB(steps=5).minimum(net, x, y)
    assert torch.equal(x_adv[2], x[2])
    assert distance[2] == 0
    assert (distance[[0, 1, 3]] > 0).all()


def test_nothing_is_found_without_a_gradient():
    class Constant(nn.Module):
        def forward(self, x):
            return 0 * x.flatten(1)[:, :3] + torch.tensor([1.0, 0.0, 0.0])

    x, y = torch.rand(3, 1, 4, 4), torch.zeros(3, dtype=torch.long)
    x_adv, distance = FAB(steps=3).minimum(Constant(), x, y)
    assert torch.equal(x_adv, x)
    assert distance.isinf().all()
    assert torch.equal(FAB(0.5, steps=3)(Constant(), x, y), x)


def test_minimum_uses_the_exact_model_and_works_under_no_grad():
    net, x, y = digits(5)

    def never(images):
        raise AssertionError("the fast path was used")

    with torch.no_grad():
        distance = FAB(steps=5).minimum(Counted(never, net), x, y)[1]
    torch.testing.assert_close(distance, FAB(steps=5).minimum(net, x, y)[1])
    assert FAB(steps=2).minimum(net, x[:0], y[:0])[1].shape == (0,)


def test_no_random_number_is_drawn():
    net, x, y = digits(6)
    before = torch.get_rng_state()
    first = FAB(0.1, steps=5)(net, x, y)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(FAB(0.1, steps=5)(net, x, y), first)
