"""APGD: the published search, without the passes that it could do without."""

import logging
import math
from collections import Counter

import pytest
import torch
from helpers.digits_net import trained
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_paf.attacks import APGD
from lightning_paf.attacks.apgd import check_windows
from lightning_paf.functional import geometry_of
from lightning_paf.speed.search_model import Passes, SearchModel

DUAL = {"linf": 1, "l2": 2}
PACKAGE_NORMS = {"linf": "Linf", "l2": "L2"}
EPS = {"linf": 0.12, "l2": 0.6}  # about half of the digits survive


def run(attack, model, x, y, seed=0, **options):
    torch.manual_seed(seed)
    return attack.search(model, x, y, **options)


class Standing(nn.Module):
    """Sees a slope towards every class, and never changes its decision."""

    def forward(self, x):
        slopes = torch.linspace(0.1, 1, 10)
        return 0.1 * x.mean((1, 2, 3))[:, None] * slopes + 10 * torch.eye(10)[0]


class Watched(nn.Module):
    """Keeps the images of every forward pass."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.seen = []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return self.net(x)


def test_checks_of_the_published_schedule():
    windows = check_windows(100)
    assert windows.nonzero().flatten().tolist() == [22, 41, 57, 70, 80, 87, 93, 99]
    assert windows[windows > 0].tolist() == [22, 19, 16, 13, 10, 7, 6, 6]


@given(st.integers(1, 400))
@settings(max_examples=30, deadline=None)
def test_windows_are_the_distances_between_checks(steps):
    windows = check_windows(steps)
    assert len(windows) == steps + 1
    done = 0
    for at in windows.nonzero().flatten().tolist():
        assert windows[at] == at - done
        done = at
    assert 0 < done <= steps


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("search_loss", "classes"), [("ce", 2), ("dlr-targeted", 5)])
def test_linear_models_break_exactly_where_they_can(norm, search_loss, classes):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, classes))
    model[1].bias.data = -model(torch.full((1, 1, 4, 4), 0.5)).detach()[0]
    model.requires_grad_(False)
    x = 0.5 + 0.2 * (torch.rand(40, 1, 4, 4) - 0.5)
    z = model(x)
    y = z.argmax(1)
    distances = (z.gather(1, y[:, None]) - z) / (model[1].weight[y][:, None] - model[1].weight).norm(DUAL[norm], dim=2)
    radius = distances.scatter(1, y[:, None], math.inf).amin(1)
    eps = radius.median().item()
    clear = (radius - eps).abs() > 0.02 * eps
    x, y, robust = x[clear], y[clear], (radius > eps)[clear]
    x_adv = run(APGD(eps, norm=norm, search_loss=search_loss, steps=30), model, x, y)
    assert torch.equal(model(x_adv).argmax(1) == y, robust)
    assert torch.equal((x_adv == x).flatten(1).all(1), robust)
    assert (geometry_of(norm).size(x_adv - x) <= eps).all()


class Recorded(APGD):
    """Remembers the lanes at their last look, and refutes every success."""

    def _harvest(self, forward, lanes, *_):
        self.lanes = lanes


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_search_is_the_published_one(norm):
    # From equal starts, and where nothing stops early, the two find the same losses and the same successes.
    from pyautoattack.autopgd_base import APGDAttack

    net, x, y = trained()
    x, y, eps = x[:60], y[:60], EPS[norm]
    start = geometry_of(norm).move(x, geometry_of(norm).project(torch.randn_like(x), eps), eps, (0, 1))
    theirs = APGDAttack(net, norm=PACKAGE_NORMS[norm], eps=eps, device="cpu", logger=logging.getLogger("quiet"))
    theirs.init_hyperparam(x)
    _, standing, best, _ = theirs.attack_single_run(x, y, x_init=start)
    ours = Recorded(eps, norm=norm)
    run(ours, net, x, y, start=start)
    assert 10 < (standing > 0).sum() < 50
    assert torch.equal(~ours.lanes.fooled, standing > 0)
    # rounding sends single trajectories elsewhere
    assert torch.isclose(ours.lanes.best_loss, best, rtol=1e-3, atol=1e-4).float().mean() > 0.9


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("search_loss", ["ce", "dlr-targeted"])
def test_survivors_are_those_of_the_package(norm, search_loss):
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

    net, x, y = trained()
    x, y, eps = x[:60], y[:60], EPS[norm]
    make = APGDAttack if search_loss == "ce" else APGDAttack_targeted

    def theirs(seed):
        options = {"norm": PACKAGE_NORMS[norm], "eps": eps, "seed": seed, "device": "cpu", "n_iter": 25}
        attack = make(net, logger=logging.getLogger("quiet"), **options)
        return net(attack.perturb(x.clone(), y)).argmax(1) == y

    def ours(seed):
        x_adv = run(APGD(eps, norm=norm, search_loss=search_loss, steps=25), SearchModel(net), x, y, seed)
        return net(x_adv).argmax(1) == y

    standing, stood = (torch.stack([search(seed) for seed in (0, 1)]) for search in (ours, theirs))
    assert 10 < stood[0].sum() < 50
    assert (standing.all(0) & ~stood.any(0)).sum() <= 1  # what both of their seeds break and neither of ours
    assert (stood.all(0) & ~standing.any(0)).sum() <= 1


@pytest.mark.parametrize("batch_size", [250, 7, 2])
def test_every_lane_of_a_robust_sample_gets_all_its_steps(batch_size):
    model = SearchModel(Standing(), fold=False)
    x, y = torch.rand(5, 1, 4, 4), torch.zeros(5, dtype=torch.long)
    assert torch.equal(run(APGD(steps=20, batch_size=batch_size), model, x, y), x)
    assert model.passes == Passes(forward=5 * 21, backward=5 * 21, exact=0)
    model.passes = Passes()
    run(APGD(steps=6, search_loss="dlr-targeted", restarts=2, batch_size=batch_size), model, x, y)
    lanes = 5 * 9 * 2
    assert model.passes == Passes(forward=5 + lanes * 7, backward=lanes * 7, exact=0)  # 5: to rank the targets


def test_standard_budget():
    model = SearchModel(Standing(), fold=False)
    run(APGD(), model, torch.rand(2, 1, 4, 4), torch.zeros(2, dtype=torch.long))
    assert model.passes == Passes(forward=202, backward=202, exact=0)


def test_batches_stay_full():
    model = Watched(Standing())
    run(APGD(steps=10, batch_size=8), model, torch.rand(11, 1, 4, 4), torch.zeros(11, dtype=torch.long))
    assert [len(x) for x in model.seen] == [8] * 11 + [3] * 11


class Falls(nn.Module):
    """Images that begin bright are misclassified as soon as they are not exactly clean; the others stand."""

    def forward(self, x):
        bright = (x[:, 0, 0, 0] > 0.5).float()
        dirty = ((x[:, 0, 1, 1] - 0.5).abs() > 1e-7).float()
        logits = Standing()(x)
        return torch.cat([logits[:, :1], logits[:, 1:2] + 40 * (bright * dirty)[:, None], logits[:, 2:]], 1)


@pytest.mark.parametrize("search_loss", ["ce", "dlr-targeted"])
def test_broken_samples_are_not_attacked_again(search_loss):
    x = torch.full((10, 1, 4, 4), 0.5)
    x[:, 0, 0, 0] = torch.tensor([0.9, 0.1]).repeat(5)  # every other one falls at its start
    model = Watched(Falls())
    search = SearchModel(model, fold=False)
    attack = APGD(steps=6, search_loss=search_loss, batch_size=5)
    x_adv = run(attack, search, x, torch.zeros(10, dtype=torch.long))
    fell = (x_adv != x).flatten(1).any(1)
    assert fell.tolist() == [True, False] * 5
    ranking, targets = (2, 9) if search_loss == "dlr-targeted" else (0, 1)
    seen = Counter((image[0, 0, 0] > 0.5).item() for batch in model.seen[ranking:] for image in batch)
    assert search.passes.exact == 5
    assert seen[True] == 5 + 5  # the start of each, and its confirmation
    assert seen[False] == 5 * targets * 7


def test_the_other_lanes_of_a_broken_sample_are_dropped():
    model = SearchModel(Falls(), fold=False)
    x = torch.full((1, 1, 4, 4), 0.5)
    x[:, 0, 0, 0] = 0.9
    run(APGD(steps=50, search_loss="dlr-targeted", batch_size=4), model, x, torch.zeros(1, dtype=torch.long))
    assert model.passes == Passes(forward=1 + 4, backward=4, exact=1)


def test_an_unconfirmed_success_goes_on_searching():
    class Hasty(nn.Module):
        def forward(self, x):
            return Standing()(x).roll(1, dims=1)

    class Doubted(SearchModel):
        def exact(self, x):
            self.passes.exact += len(x)
            return Standing()(x)

    model = Doubted(Hasty(), fold=False)
    x, y = torch.rand(3, 1, 4, 4), torch.zeros(3, dtype=torch.long)
    assert torch.equal(run(APGD(steps=12), model, x, y), x)
    assert model.passes == Passes(forward=39, backward=39, exact=39)


def test_looking_seldom_finds_the_same(monkeypatch):
    # On a GPU the search asks every few iterations who fell, because the answer makes the host wait.
    net, x, y = trained()
    x, y = x[:40], y[:40]
    attack, model = APGD(EPS["linf"], steps=25, batch_size=15), SearchModel(net)
    often = run(attack, model, x, y)
    monkeypatch.setattr("lightning_paf.attacks.apgd._CPU_INTERVAL", 10)
    seldom = run(attack, model, x, y)
    robust = [net(x_adv).argmax(1) == y for x_adv in (often, seldom)]
    assert torch.equal(*robust)
    assert not torch.equal(often, seldom)
    assert torch.equal((seldom == x).flatten(1).all(1), robust[1])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_success_is_confirmed(precision):
    net, x, y = trained()
    model = SearchModel(net, precision)
    x_adv = run(APGD(EPS["linf"], steps=20), model, x[:60], y[:60])
    fell = (x_adv != x[:60]).flatten(1).any(1)
    assert 10 < fell.sum() < 50
    assert torch.equal(net(x_adv).argmax(1) != y[:60], fell)


def test_repeatable_and_starts_do_not_depend_on_the_batches():
    net, x, y = trained()
    x, y = x[:20], y[:20]
    firsts = []
    for batch_size in (100, 100, 3):
        model = Watched(net)
        attack = APGD(EPS["linf"], steps=10, batch_size=batch_size)
        x_adv = run(attack, model, x, y)
        starts = torch.cat(model.seen)
        near = torch.stack([((starts - one).abs().amax((1, 2, 3)) <= 0.13).nonzero()[0, 0] for one in x])
        firsts.append((starts[near], x_adv))
    assert torch.equal(firsts[0][1], firsts[1][1])
    assert torch.equal(firsts[0][0], firsts[2][0])
    assert not torch.equal(run(APGD(EPS["linf"], steps=10), net, x, y, seed=1), firsts[0][1])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_given_starts_are_used_and_brought_into_the_ball(norm):
    model = Watched(Standing())
    x = torch.rand(4, 1, 4, 4)
    far = torch.full_like(x, 2.0)
    run(APGD(0.1, norm=norm, steps=1, restarts=2), model, x, torch.zeros(4, dtype=torch.long), start=far)
    starts, again = model.seen[0].split([4, 4])
    assert (geometry_of(norm).size(starts - x) <= 0.1 + 1e-6).all()
    assert (starts >= x).all()
    assert starts.max() <= 1
    assert (again < x).any()  # later restarts are random


def test_random_starts_lie_on_the_sphere():
    model = Watched(Standing())
    x = torch.full((5, 1, 4, 4), 0.5)
    for norm in ("linf", "l2"):
        model.seen.clear()
        run(APGD(0.1, norm=norm, steps=1), model, x, torch.zeros(5, dtype=torch.long))
        torch.testing.assert_close(geometry_of(norm).size(model.seen[0] - x), torch.full((5,), 0.1))


def test_averaged_gradients():
    model = SearchModel(Standing(), fold=False)
    run(APGD(steps=5, eot=4), model, torch.rand(3, 1, 4, 4), torch.zeros(3, dtype=torch.long))
    assert model.passes == Passes(forward=3 * 6 * 4, backward=3 * 6 * 4, exact=0)


def test_gradients_that_are_no_numbers_do_not_spoil_the_images():
    class Root(nn.Module):
        def forward(self, x):
            return Standing()(x) + (x * 0).sum((1, 2, 3)).sqrt()[:, None]  # slope 0 times infinity

    model = Watched(Root())
    x = torch.rand(3, 1, 4, 4)
    assert torch.equal(run(APGD(steps=5), model, x, torch.zeros(3, dtype=torch.long)), x)
    assert all(seen.isfinite().all() for seen in model.seen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "l1"}, "Pass ReferenceAutoAttack for l1"),
        ({"search_loss": "margin"}, "search_loss must be one of ce, dlr, dlr-targeted"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        APGD(**options)


def test_too_few_classes_for_the_targeted_loss():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(ValueError, match="at least 4 for the targeted DLR loss, got a model with 3"):
        APGD(search_loss="dlr-targeted")(model, torch.rand(2, 1, 4, 4), torch.tensor([0, 1]))


def test_labels_and_description():
    assert [APGD(search_loss=loss).label for loss in ("ce", "dlr", "dlr-targeted")] == ["apgd-ce", "apgd-dlr", "apgd-t"]
    described = APGD(search_loss="dlr-targeted").describe()
    assert described["targets"] == 9
    assert described["eps"] == "8/255"
    assert "loss" not in described
