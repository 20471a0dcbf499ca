import math

import pytest
import torch
from helpers.digits_net import trained
from torch import nn

from lightning_paf.attacks import FAB, fab
from lightning_paf.functional import geometry_of, margin

DUAL = {"linf": 1, "l2": 2}
EPS = {"linf": 0.12, "l2": 0.59}  # breaks about half of the digits
norms = pytest.mark.parametrize("norm", ["linf", "l2"])


class Counted(nn.Module):
    """Counts the images of each batch, with and without gradients; may carry an exact model."""

    def __init__(self, model, exact=None):
        super().__init__()
        self.model = model
        self.plain, self.graph = [], []
        if exact is not None:
            self.exact = exact

    def forward(self, x):
        (self.graph if x.requires_grad else self.plain).append(len(x))
        return self.model(x)


def linear(classes, norm, n=24):
    """Grey images (n, 1, 4, 4), the classes of a linear model, and their distances from the boundary."""
    torch.manual_seed(classes)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, classes))
    model[1].bias.data = -model(torch.full((1, 1, 4, 4), 0.5)).detach()[0]
    x = 0.5 + 0.2 * (torch.rand(n, 1, 4, 4) - 0.5)
    z = model(x).detach()
    y = z.argmax(1)
    weight = model[1].weight.detach()
    distance = (z.gather(1, y[:, None]) - z) / (weight[y][:, None] - weight).norm(p=DUAL[norm], dim=2)
    return model, x, y, distance.scatter(1, y[:, None], math.inf).amin(1)


def digits(n):
    net, x, y = trained()
    return net, x[:n], y[:n]


def robust(model, x, y):
    with torch.no_grad():
        return model(x).argmax(1) == y


@norms
@pytest.mark.parametrize("classes", [2, 3, 5, 12])
def test_minimum_distance_of_a_linear_model(norm, classes):
    model, x, y, distance = linear(classes, norm)
    x_adv, found = FAB(norm=norm).minimum(model, x, y)
    assert not robust(model, x_adv, y).any()
    torch.testing.assert_close(geometry_of(norm).size(x_adv - x), found)
    assert (found >= distance - 1e-6).all()
    assert (found <= 1.02 * distance).all()


@norms
@pytest.mark.parametrize("classes", [2, 4])
def test_exact_robust_set_of_a_linear_model(norm, classes):
    model, x, y, distance = linear(classes, norm)
    eps = distance.median().item()
    clear = (distance - eps).abs() > 0.03 * eps
    x, y, distance = x[clear], y[clear], distance[clear]
    x_adv = FAB(eps, norm=norm)(model, x, y)
    stands = distance > eps
    assert 0 < stands.sum() < len(y)
    assert torch.equal(robust(model, x_adv, y), stands)
    assert torch.equal(x_adv[stands], x[stands])
    assert (geometry_of(norm).size(x_adv - x) <= eps).all()


@norms
def test_same_robust_set_as_the_package(norm):
    from pyautoattack.fab_pt import FABAttack_PT

    net, x, y = digits(40)
    package = FABAttack_PT(net, norm={"linf": "Linf", "l2": "L2"}[norm], eps=EPS[norm], targeted=True, n_iter=10)
    expected = robust(net, package.perturb(x.clone(), y), y)
    found = robust(net, FAB(EPS[norm], norm=norm, steps=10)(net, x, y), y)
    assert 10 < expected.sum() < 30
    assert (expected != found).sum() <= 1  # it draws nothing; what differs is rounding


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
def test_budget_of_images_that_resist(batch_size):
    net, x, y = digits(5)
    counted = Counted(net)
    x_adv = FAB(1e-4, steps=4, batch_size=batch_size)(counted, x, y)
    assert torch.equal(x_adv, x)
    assert sum(counted.graph) == 5 * 9 * 4  # a gradient a step
    assert sum(counted.plain) == 5 + 5 * 9 * 4  # the ranking, and a look at each new point
    assert max(counted.graph) == min(45, batch_size)


def test_broken_images_leave_and_waiting_pairs_take_their_places():
    net, x, y = digits(12)
    counted = Counted(net)
    x_adv = FAB(0.12, steps=20, batch_size=10)(counted, x, y)
    stands = robust(net, x_adv, y)
    assert 0 < stands.sum() < 12
    assert sum(counted.graph) < 20 * 9 * stands.sum() + 20 * 2 * (~stands).sum()
    assert len(counted.graph) * 10 - sum(counted.graph) < 20 * 10  # lanes are empty at the very end only


def test_all_broken_at_once():
    net, x, y = digits(8)
    counted = Counted(net)
    assert not robust(net, FAB(0.6, steps=50)(counted, x, y), y).any()
    assert len(counted.graph) <= 3


@norms
def test_lanes_at_once_do_not_matter(norm):
    net, x, y = digits(12)
    sets = [robust(net, FAB(EPS[norm], norm=norm, steps=10, batch_size=size)(net, x, y), y) for size in (5, 250)]
    assert torch.equal(*sets)


@norms
@pytest.mark.parametrize("steps", [20, 12, 7])
def test_rare_checks_find_the_same(norm, steps, monkeypatch):
    net, x, y = digits(30)
    often = robust(net, FAB(EPS[norm], norm=norm, steps=steps)(net, x, y), y)
    monkeypatch.setattr(fab, "_CPU_INTERVAL", 10)  # 10, 6 and 7 divide the steps
    counted = Counted(net)
    x_adv = FAB(EPS[norm], norm=norm, steps=steps)(counted, x, y)
    assert torch.equal(robust(net, x_adv, y), often)
    assert (geometry_of(norm).size(x_adv - x) <= EPS[norm]).all()
    assert len(counted.graph) % {20: 10, 12: 6, 7: 7}[steps] == 0


def test_success_needs_the_exact_model():
    net, x, y = digits(20)
    seen = []

    def harder(images):
        """The label is ahead by 0.5 more."""
        seen.append(images)
        return net(images).scatter_add(1, labels[: len(images), None], torch.full((len(images), 1), 0.5))

    x, y = x[y == 3], y[y == 3]
    labels = torch.full((200,), 3)
    x_adv = FAB(0.3, steps=20)(Counted(net, harder), x, y)
    changed = (x_adv != x).flatten(1).any(1)
    assert changed.any()
    assert (margin(net(x_adv[changed]), y[changed]) > 0.5).all()
    assert all((margin(net(images), labels[: len(images)]) > 0).all() for images in seen[1:])  # candidates only
    assert len(seen[0]) == len(x)  # the ranking


def test_nothing_counts_that_the_exact_model_denies():
    net, x, y = digits(4)
    x_adv = FAB(0.3, steps=5)(
        Counted(net, lambda images: 100 * nn.functional.one_hot(y[:1], 10).expand(len(images), -1)), x, y
    )
    assert torch.equal(x_adv, x)


def test_misclassified_images_are_left_alone():
    net, x, y = digits(6)
    y = y.clone()
    y[2] = (y[2] + 1) % 10
    assert torch.equal(FAB(0.3, steps=5)(net, x, y)[2], x[2])
    x_adv, distance = FAB(steps=5).minimum(net, x, y)
    assert torch.equal(x_adv[2], x[2])
    assert distance[2] == 0
    assert (distance[[0, 1, 3]] > 0).all()


def test_no_gradient_finds_nothing():
    class Deaf(nn.Module):
        def forward(self, x):
            return 0 * x.flatten(1)[:, :3] + torch.tensor([1.0, 0.0, 0.0])

    x, y = torch.rand(3, 1, 4, 4), torch.zeros(3, dtype=torch.long)
    x_adv, distance = FAB(steps=3).minimum(Deaf(), x, y)
    assert torch.equal(x_adv, x)
    assert distance.isinf().all()
    assert torch.equal(FAB(0.5, steps=3)(Deaf(), x, y), x)


def test_minimum_uses_the_exact_model_and_works_without_gradients_around_it():
    net, x, y = digits(5)

    def never(images):
        raise AssertionError("the fast path was used")

    carrier = Counted(never, net)
    with torch.no_grad():
        distance = FAB(steps=5).minimum(carrier, x, y)[1]
    torch.testing.assert_close(distance, FAB(steps=5).minimum(net, x, y)[1])


def test_empty_batch_and_single_image():
    net, x, y = digits(1)
    assert FAB(steps=2)(net, x[:0], y[:0]).shape == (0, 1, 8, 8)
    assert FAB(steps=2).minimum(net, x[:0], y[:0])[1].shape == (0,)
    assert not robust(net, FAB(0.4, steps=20)(net, x, y), y).any()


def test_draws_nothing():
    net, x, y = digits(6)
    before = torch.get_rng_state()
    first = FAB(0.1, steps=5)(net, x, y)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(FAB(0.1, steps=5)(net, x, y), first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "l1"}, "got 'l1'. Pass ReferenceAutoAttack"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"targets": 0}, "targets must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        FAB(**options)


def test_name_and_description():
    described = FAB(norm="l2", eps=0.5, steps=7).describe()
    assert (described["steps"], described["targets"], described["batch_size"]) == (7, 9, 250)
    assert "loss" not in described
    assert FAB().label == "fab-t"
