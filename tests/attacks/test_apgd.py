"""APGD: the published search, without its unnecessary passes."""

import logging
from collections import Counter

import pytest
import torch
from helpers.digits_net import Recorder, digits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_paf.attacks import APGD
from lightning_paf.attacks.apgd import check_windows
from lightning_paf.functional import geometry_of
from lightning_paf.speed.search_model import Passes, SearchModel

PACKAGE_NORMS = {"linf": "Linf", "l2": "L2"}
EPS = {"linf": 0.12, "l2": 0.6}  # about half of the digits are robust
norms = pytest.mark.parametrize("norm", ["linf", "l2"])


def run(attack, model, x, y, seed=0, **options):
    torch.manual_seed(seed)
    return attack.search(model, x, y, **options)


class AlwaysClass0(nn.Module):
    """Logits of 10 classes with gradients, but always the same prediction."""

    def forward(self, x):
        slopes = torch.linspace(0.1, 1, 10)
        return 0.1 * x.mean((1, 2, 3))[:, None] * slopes + 10 * torch.eye(10)[0]


class FooledIfBright(nn.Module):
    """Images with a bright first pixel are misclassified as soon as they are changed; the others never."""

    def forward(self, x):
        bright = (x[:, 0, 0, 0] > 0.5).float()
        changed = ((x[:, 0, 1, 1] - 0.5).abs() > 1e-7).float()
        return AlwaysClass0()(x) + 40 * (bright * changed)[:, None] * torch.eye(10)[1]


def class_0(n):
    return torch.rand(n, 1, 4, 4), torch.zeros(n, dtype=torch.long)


def bright_and_dark(n):
    x = torch.full((n, 1, 4, 4), 0.5)
    x[:, 0, 0, 0] = torch.tensor([0.9, 0.1]).repeat(n)[:n]
    return x, torch.zeros(n, dtype=torch.long)


def test_checks_of_the_published_schedule():
    windows = check_windows(100)
    assert windows.nonzero().flatten().tolist() == [22, 41, 57, 70, 80, 87, 93, 99]
    assert windows[windows > 0].tolist() == [22, 19, 16, 13, 10, 7, 6, 6]


@given(st.integers(1, 400))
@settings(max_examples=20, deadline=None)
def test_windows_are_the_distances_between_checks(steps):
    windows = check_windows(steps)
    assert len(windows) == steps + 1
    done = 0
    for at in windows.nonzero().flatten().tolist():
        assert windows[at] == at - done
        done = at
    assert 0 < done <= steps


class WithoutHarvest(APGD):
    """Keeps the lanes of the last check, and rejects every success."""

    def _harvest(self, forward, lanes, *_):
        self.lanes = lanes


@norms
def test_search_is_the_published_one(norm):
    # From equal starts, and where nothing stops early, both find the same losses and the same successes.
    from pyautoattack.autopgd_base import APGDAttack

    (net, x, y), eps = digits(40), EPS[norm]
    start = geometry_of(norm).move(x, geometry_of(norm).project(torch.randn_like(x), eps), eps, (0, 1))
    theirs = APGDAttack(net, norm=PACKAGE_NORMS[norm], eps=eps, device="cpu", logger=logging.getLogger("quiet"))
    theirs.init_hyperparam(x)
    _, robust, best, _ = theirs.attack_single_run(x, y, x_init=start)
    ours = WithoutHarvest(eps, norm=norm)
    run(ours, net, x, y, start=start)
    assert 8 < (robust > 0).sum() < 32
    assert torch.equal(~ours.lanes.fooled, robust > 0)
    # rounding changes single trajectories
    assert torch.isclose(ours.lanes.best_loss, best, rtol=1e-3, atol=1e-4).float().mean() > 0.9


@norms
@pytest.mark.parametrize("search_loss", ["ce", "dlr-targeted"])
def test_robust_images_are_those_of_the_package(norm, search_loss):
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

    (net, x, y), eps = digits(60), EPS[norm]
    make = APGDAttack if search_loss == "ce" else APGDAttack_targeted

    def theirs(seed):
        options = {"norm": PACKAGE_NORMS[norm], "eps": eps, "seed": seed, "device": "cpu", "n_iter": 25}
        attack = make(net, logger=logging.getLogger("quiet"), **options)
        return net(attack.perturb(x.clone(), y)).argmax(1) == y

    def ours(seed):
        x_adv = run(APGD(eps, norm=norm, search_loss=search_loss, steps=25), SearchModel(net), x, y, seed)
        return net(x_adv).argmax(1) == y

    robust, expected = (torch.stack([search(seed) for seed in (0, 1)]) for search in (ours, theirs))
    assert 10 < expected[0].sum() < 50
    assert (robust.all(0) & ~expected.any(0)).sum() <= 1  # fooled with both of their seeds and neither of ours
    assert (expected.all(0) & ~robust.any(0)).sum() <= 1


@pytest.mark.parametrize("batch_size", [250, 7, 2])
def test_budget_of_robust_images(batch_size):
    model = SearchModel(AlwaysClass0(), fold=False)
    x, y = class_0(5)
    assert torch.equal(run(APGD(steps=20, batch_size=batch_size), model, x, y), x)
    assert model.passes == Passes(forward=5 * 21, backward=5 * 21, exact=0)
    model.passes = Passes()
    run(APGD(steps=6, search_loss="dlr-targeted", restarts=2, batch_size=batch_size), model, x, y)
    lanes = 5 * 9 * 2
    assert model.passes == Passes(forward=5 + lanes * 7, backward=lanes * 7, exact=0)  # 5: to rank the targets


@pytest.mark.parametrize(("attack", "passes"), [(APGD(), 101), (APGD(steps=5, eot=4), 6 * 4)])
def test_standard_budget_and_averaged_gradients(attack, passes):
    model = SearchModel(AlwaysClass0(), fold=False)
    run(attack, model, *class_0(2))
    assert model.passes == Passes(forward=2 * passes, backward=2 * passes, exact=0)


def test_batches_stay_full():
    model = Recorder(AlwaysClass0())
    run(APGD(steps=10, batch_size=8), model, *class_0(11))
    assert [len(x) for x in model.images] == [8] * 11 + [3] * 11


@pytest.mark.parametrize("search_loss", ["ce", "dlr-targeted"])
def test_fooled_images_are_not_attacked_again(search_loss):
    x, y = bright_and_dark(10)
    model = Recorder(FooledIfBright())
    search = SearchModel(model, fold=False)
    x_adv = run(APGD(steps=6, search_loss=search_loss, batch_size=5), search, x, y)
    assert (x_adv != x).flatten(1).any(1).tolist() == [True, False] * 5
    ranking, targets = (2, 9) if search_loss == "dlr-targeted" else (0, 1)
    seen = Counter((image[0, 0, 0] > 0.5).item() for batch in model.images[ranking:] for image in batch)
    assert search.passes.exact == 5
    assert seen[True] == 5 + 5  # the start of each, and its confirmation
    assert seen[False] == 5 * targets * 7


def test_the_other_lanes_of_a_fooled_image_end():
    model = SearchModel(FooledIfBright(), fold=False)
    run(APGD(steps=50, search_loss="dlr-targeted", batch_size=4), model, *bright_and_dark(1))
    assert model.passes == Passes(forward=1 + 4, backward=4, exact=1)


def test_search_continues_after_an_unconfirmed_success():
    class AlwaysClass1(nn.Module):
        def forward(self, x):
            return AlwaysClass0()(x).roll(1, dims=1)

    class Unconfirmed(SearchModel):
        def exact(self, x):
            self.passes.exact += len(x)
            return AlwaysClass0()(x)

    model = Unconfirmed(AlwaysClass1(), fold=False)
    x, y = class_0(3)
    assert torch.equal(run(APGD(steps=12), model, x, y), x)
    assert model.passes == Passes(forward=39, backward=39, exact=39)


def test_results_are_repeatable_and_starts_independent_of_the_batches():
    net, x, y = digits(20)
    found = []
    for batch_size in (100, 100, 3):
        model = Recorder(net)
        x_adv = run(APGD(EPS["linf"], steps=10, batch_size=batch_size), model, x, y)
        seen = torch.cat(model.images)
        first = torch.stack([((seen - one).abs().amax((1, 2, 3)) <= 0.13).nonzero()[0, 0] for one in x])
        found.append((seen[first], x_adv))
    assert torch.equal(found[0][1], found[1][1])
    assert torch.equal(found[0][0], found[2][0])
    assert not torch.equal(run(APGD(EPS["linf"], steps=10), net, x, y, seed=1), found[0][1])


@norms
def test_starts_are_on_the_sphere_or_as_given(norm):
    model = Recorder(AlwaysClass0())
    x, y = torch.full((4, 1, 4, 4), 0.5), torch.zeros(4, dtype=torch.long)
    run(APGD(0.1, norm=norm, steps=1), model, x, y)
    torch.testing.assert_close(geometry_of(norm).size(model.images[0] - x), torch.full((4,), 0.1))
    model.images.clear()
    run(APGD(0.1, norm=norm, steps=1, restarts=2), model, x, y, start=torch.full_like(x, 2.0))
    first, second = model.images[0].split([4, 4])
    assert (geometry_of(norm).size(first - x) <= 0.1 + 1e-6).all()
    assert (first >= x).all()
    assert first.max() <= 1
    assert (second < x).any(), "later restarts are random"


def test_too_few_classes_for_the_targeted_loss():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(ValueError, match="at least 4 for the targeted DLR loss, got a model with 3"):
        APGD(search_loss="dlr-targeted")(model, *class_0(2))
