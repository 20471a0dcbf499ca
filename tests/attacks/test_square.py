"""Square: optima of linear models, agreement with the package, and its windows."""

import pytest
import torch
from helpers.digits_net import Recorder, digits
from torch import nn

from lightning_paf.attacks import Square, square, square_search
from lightning_paf.functional import geometry_of, margin

EPS = {"linf": 0.2, "l2": 0.95}  # about half of the digits are robust against 100 queries
norms = pytest.mark.parametrize("norm", ["linf", "l2"])


@pytest.fixture
def sequential(monkeypatch):
    """One query at a time, also where few images stand."""
    monkeypatch.setattr(square, "_CPU_FILLED", 0)


def robust(model, x, y):
    with torch.no_grad():
        return model(x).argmax(1) == y


def constant(x):
    """Logits of three classes that never change; the prediction is class 0."""
    return torch.tensor([1.0, 0.0, -1.0]).expand(len(x), -1)


def nan(x):
    return torch.full((len(x), 3), torch.nan)


def images_of(label, n, size=8, channels=1):
    return torch.rand(n, channels, size, size), torch.full((n,), label)


def binary(n=6, size=4):
    """A linear model of two classes and grey images of class 0."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(size * size, 2))
    x = 0.5 + 0.2 * (torch.rand(n, 1, size, size) - 0.5)
    z = model(x).detach()
    model[1].bias.data[0] += (z[:, 1] - z[:, 0]).amax() + 0.2
    return model, x, torch.zeros(n, dtype=torch.long)


@pytest.mark.parametrize("clipped", [False, True])
def test_linf_reaches_the_optimum_of_a_linear_model(clipped):
    # All corners of the box are reached, including the last row and column: the best margin is the optimum.
    model, x, y = binary()
    if clipped:
        x = (5 * (x - 0.5) + 0.5).clamp(0, 1)
        y = model(x).argmax(1)
    w = (model[1].weight[1] - model[1].weight[0]).detach().view(4, 4)
    sign = w.sign() * (1 - 2 * y.view(-1, 1, 1, 1))
    low, high = torch.zeros(len(x)), torch.ones(len(x))
    for _ in range(40):
        middle = (low + high) / 2
        fooled = margin(model((x + middle.view(-1, 1, 1, 1) * sign).clamp(0, 1)), y) > 0
        low, high = torch.where(fooled, low, middle), torch.where(fooled, middle, high)
    for image in (high <= 0.9).nonzero().flatten().tolist():
        one = slice(image, image + 1)
        torch.manual_seed(0)
        assert not robust(model, Square(1.01 * high[image].item(), queries=800)(model, x[one], y[one]), y[one]).any()
        assert robust(model, Square(0.99 * low[image].item(), queries=20)(model, x[one], y[one]), y[one]).all()


def test_l2_comes_near_the_optimum_of_a_linear_model():
    model, x, y = binary(size=8)
    distance = (-margin(model(x), y) / (model[1].weight[1] - model[1].weight[0]).norm()).detach()
    for factor, expected in ((0.99, True), (1.7, False)):
        for image in (0, 1):
            one = slice(image, image + 1)
            torch.manual_seed(0)
            attack = Square(factor * distance[image].item(), norm="l2", queries=500)
            assert robust(model, attack(model, x[one], y[one]), y[one]).item() is expected


@norms
def test_as_strong_as_the_package_with_the_window_positions_of_the_paper(norm):
    from pyautoattack.square import SquareAttack

    class Everywhere(SquareAttack):
        def random_int(self, low=0, high=1, shape=(1,)):
            return super().random_int(low, high + 1, shape)  # the last row and column too

    net, x, y = digits(50)
    options = {"norm": {"linf": "Linf", "l2": "L2"}[norm], "eps": EPS[norm], "n_queries": 100, "resc_schedule": False}
    theirs, own = [], []
    for seed in (0, 1):
        theirs.append(robust(net, Everywhere(net, seed=seed, **options).perturb(x.clone(), y), y))
        torch.manual_seed(seed)
        x_adv = Square(EPS[norm], norm=norm, queries=100)(net, x, y)
        own.append(robust(net, x_adv, y))
        assert torch.equal(x_adv[own[-1]], x[own[-1]])
        assert (geometry_of(norm).size(x_adv - x) <= EPS[norm]).all()
    assert 10 < own[0].sum() < 45
    assert abs(sum(map(torch.sum, own)) - sum(map(torch.sum, theirs))) <= 12  # four standard deviations
    assert (own[0] & own[1] & ~theirs[0] & ~theirs[1]).sum() <= 3
    assert (~own[0] & ~own[1] & theirs[0] & theirs[1]).sum() <= 3


@norms
def test_sizes_of_the_squares_as_in_the_package(norm):
    from pyautoattack.square import SquareAttack

    package = SquareAttack(None, resc_schedule=False)
    search = square_search.SEARCHES[norm](torch.rand(1, 3, 32, 32), 0.1, 1, 0.8)
    for query in [*range(0, 60), *range(190, 210), 500, 501, 1000, 1001, 2000, 2001, 4000, 4001, 6001, 8000, 8001]:
        side = round((package.p_selection(query) * 32 * 32) ** 0.5)
        if norm == "l2":
            side = max(side, 3) + (max(side, 3) % 2 == 0)
        assert search.side(query) == max(side, 1)


@norms
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 5), (7, 16)])
def test_small_and_oblong_images(norm, size, sequential):
    x = torch.rand(3, 2, *size)
    recorder = Recorder(constant)
    Square(0.1, norm=norm, queries=30)(recorder, x, torch.zeros(3, dtype=torch.long))
    for images in recorder.images:
        assert torch.isfinite(images).all()
        assert images.min() >= 0
        assert images.max() <= 1
        assert (geometry_of(norm).size(images - x) <= 0.1).all()


@norms
@pytest.mark.parametrize("batch_size", [2, 250])
def test_budget_of_robust_images(norm, batch_size, sequential):
    recorder, (x, y) = Recorder(constant), images_of(0, 5)
    x_adv = Square(0.1, norm=norm, queries=40, batch_size=batch_size)(recorder, x, y)
    assert torch.equal(x_adv, x)
    assert recorder.seen == 5 * (1 + 40)
    assert max(map(len, recorder.images)) == min(5, batch_size)


@norms
def test_search_ends_when_all_images_are_fooled(norm):
    recorder, (x, y) = Recorder(constant), images_of(1, 5)
    x_adv = Square(0.1, norm=norm, queries=40)(recorder, x, y)
    assert list(map(len, recorder.images)) == [5]
    assert torch.equal(x_adv, recorder.images[0])


@norms
def test_fooled_images_are_not_queried_again_and_do_not_change_the_others(norm, sequential):
    x, y = images_of(0, 6, channels=3)
    runs = []
    for label in (0, 1):
        recorder = Recorder(constant)
        y[1:5] = label  # with label 1, these four are misclassified at once
        torch.manual_seed(0)
        Square(0.1, norm=norm, queries=25)(recorder, x, y)
        runs.append(recorder.images)
    assert list(map(len, runs[1])) == [6] + [2] * 25
    for alone, together in zip(runs[1][1:], runs[0][1:], strict=True):
        torch.testing.assert_close(alone, together[[0, 5]])


def test_linf_starts_with_stripes_and_changes_one_shared_square(sequential):
    x, y = images_of(0, 4, size=16, channels=3)
    ball = geometry_of("linf")
    high, low = (ball.move(x, torch.full_like(x, delta), 0.1, (0.0, 1.0)) for delta in (0.1, -0.1))
    recorder = Recorder(constant)
    Square(0.1, queries=60)(recorder, x, y)
    start = recorder.images[0]
    assert ((start == high) | (start == low)).all()
    up = start > x
    assert (up == up[:, :, :1]).all()
    assert 0.2 < up[:, :, 0].float().mean() < 0.8
    last = {}
    for query, images in enumerate(recorder.images[1:]):
        changed = (images != start).any(1).any(0)  # some pixels had this value before
        side = 14 if query <= 10 else 10
        for axis in (0, 1):
            indices = changed.any(axis).nonzero().squeeze(1)
            if len(indices):
                assert indices[-1] - indices[0] < side
                last[axis] = max(last.get(axis, 0), int(indices[-1]))
    assert last == {0: 15, 1: 15}  # the last row and column are reached


def test_only_improvements_are_kept(sequential):
    recorder = Recorder(lambda x: torch.stack((x.mean((1, 2, 3)), -torch.ones(len(x))), dim=1))  # darker is better
    x = 0.5 + 0.1 * torch.rand(3, 1, 8, 8)
    Square(0.2, queries=100)(recorder, x, torch.zeros(3, dtype=torch.long))
    previous = recorder.images[0]
    best = previous.mean((1, 2, 3))
    for images in recorder.images[1:]:
        changed = (images != previous).flatten(1).float().mean(1)
        assert (changed <= 0.8 + 0.05).all()
        better = images.mean((1, 2, 3)) < best
        previous = torch.where(better.view(-1, 1, 1, 1), images, previous)
        best = best.minimum(images.mean((1, 2, 3)))
    torch.testing.assert_close(best, (x - 0.2).mean((1, 2, 3)), atol=0.02, rtol=0)


def test_l2_proposals_use_the_whole_radius():
    x = 0.5 + 0.01 * torch.rand(4, 3, 12, 12)  # nothing is clamped
    recorder = Recorder(lambda x: torch.stack((x.square().mean((1, 2, 3)), -torch.ones(len(x))), dim=1))
    Square(0.3, norm="l2", queries=150)(recorder, x, torch.zeros(4, dtype=torch.long))
    for images in recorder.images:
        size = geometry_of("l2").size(images - x)
        assert (size <= 0.3).all()
        torch.testing.assert_close(size, torch.full((4,), 0.3), rtol=1e-5, atol=0)


def test_unconfirmed_success_is_checked_again_only_when_its_margin_has_grown():
    x, y = images_of(1, 4)
    exact = Recorder(lambda images: torch.tensor([0.0, 1.0, 0.0]).expand(len(images), -1))
    assert torch.equal(Square(0.1, queries=30)(Recorder(constant, exact), x, y), x)
    assert list(map(len, exact.images)) == [4]


def test_nan_is_a_success_unless_the_exact_model_classifies_correctly(sequential):
    x, y = images_of(0, 3)
    model = Recorder(nan)
    assert not torch.equal(Square(0.1, queries=5)(model, x, y), x)
    assert len(model.images) == 1
    model = Recorder(nan, constant)
    assert torch.equal(Square(0.1, queries=5)(model, x, y), x)
    assert len(model.images) == 6


def test_looking_ahead_finds_the_images_of_the_sequential_search(monkeypatch):
    net, x, y = digits(40)
    found, passes = [], []
    for filled in (0, 16, 64):
        monkeypatch.setattr(square, "_CPU_FILLED", filled)
        recorder = Recorder(net)
        torch.manual_seed(0)
        found.append(Square(0.15, queries=300)(recorder, x, y))
        passes.append(len(recorder.images))
    assert 5 < robust(net, found[0], y).sum() < 35
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert passes[0] == 301
    assert passes[2] < 250


def test_looking_ahead_makes_every_query_of_a_robust_image_once():
    recorder, (x, y) = Recorder(constant), images_of(0, 3)
    assert torch.equal(Square(0.1, queries=501)(recorder, x, y), x)
    assert recorder.seen == 3 * 502
    assert len(recorder.images) < 100
