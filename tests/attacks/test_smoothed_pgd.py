"""The search beyond plateaus, on a closed form and within AutoAttack."""

from functools import partial

import pytest
import torch
from helpers.digits_net import Recorder
from helpers.plateau import EPS, plateau
from torch import nn

from lightning_paf.attacks import PGD, AutoAttack, Restarts, SmoothedPGD, Square, autoattack
from lightning_paf.attacks.sub_attack import run_sub_attack
from lightning_paf.functional import geometry_of
from lightning_paf.speed.search_model import SearchModel

QUERIES = 100


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_leaves_a_plateau_that_holds_other_attacks(norm):
    net, x, y = plateau(norm)
    many = Restarts(PGD(EPS, norm=norm, step_size=EPS / 4, steps=20), 20)
    for attack in (many, Square(EPS, norm=norm, queries=200)):
        assert net(attack(net, x, y)).argmax(1) == y
    for seed in range(2):
        torch.manual_seed(seed)
        x_adv = SmoothedPGD(EPS, norm=norm)(net, x, y)
        assert net(x_adv).argmax(1) != y
        assert geometry_of(norm).size(x_adv - x) <= EPS + 1e-6


def test_images_without_success_or_need_are_returned_unchanged():
    net, x, y = plateau(height=5)  # the margin at the corner is 0
    assert torch.equal(SmoothedPGD(0.9 * EPS)(net, x, y), x)
    assert torch.equal(SmoothedPGD(EPS)(net, x, 1 - y), x)


def test_lanes_of_an_image_end_with_its_success_and_a_robust_image_costs_all_passes():
    net, x, y = plateau()
    attack = SmoothedPGD(EPS, steps=20, smoothed_steps=15, widths=[2, 4], softening=0, batch_size=1)
    robust, fooled = (Recorder(net) for _ in range(2))
    attack(robust, x, 1 - y)  # misclassified from the start
    assert robust.seen == 1
    attack.eps = EPS / 2
    robust = Recorder(net)
    attack(robust, x, y)
    assert robust.seen == 1 + 2 * 20
    torch.manual_seed(0)
    SmoothedPGD(EPS, softening=0, batch_size=1)(fooled, x, y)
    assert 1 + 40 < fooled.seen < 1 + 3 * 64


@pytest.mark.parametrize("softening", [0, 0.25])
def test_softening_costs_no_passes_and_a_softened_lane_has_no_success(softening):
    net, x, y = plateau()
    search = SearchModel(net)
    attack = SmoothedPGD(EPS / 2, steps=20, smoothed_steps=15, widths=[2, 4], softening=softening)
    assert torch.equal(attack(search, x, y), x)
    assert (search.passes.forward, search.passes.backward) == (1 + 2 * 20, 2 * 20)


def test_softened_activations_lead_off_a_plateau_that_noise_does_not_leave():
    net, x, y = plateau()

    def found(softening):
        attack = SmoothedPGD(EPS, widths=[0.5], softening=softening)
        alone = net(attack(net, x, y)).argmax(1) != y
        return [bool(run_sub_attack(attack, SearchModel(net), x, y, 0)[1]), bool(alone)]

    assert found(0) == [False, False]
    assert found(2) == [True, True]


def test_success_must_be_confirmed_by_the_exact_model():
    net, x, y = plateau()
    attack = SmoothedPGD(EPS)
    torch.manual_seed(0)
    refuted = attack(Recorder(net, exact=lambda z: torch.tensor([[1.0, 0.0]]).expand(len(z), 2)), x, y)
    assert torch.equal(refuted, x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "l1"}, "norm of SmoothedPGD must be linf or l2, got 'l1'"),
        ({"steps": 40}, "steps must be at least 41, got 40"),
        ({"widths": []}, r"widths must be positive and finite, got \[\]"),
        ({"widths": [1.0, float("nan")]}, "widths must be positive"),
        ({"softening": -1.0}, "softening must be at least 0 and finite, got -1.0"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        SmoothedPGD(EPS, **options)


@pytest.fixture
def _few_queries(monkeypatch):
    monkeypatch.setattr(autoattack, "_MAKE", {**autoattack._MAKE, "square": partial(Square, queries=QUERIES)})


@pytest.fixture
def _few_steps(monkeypatch, _few_queries):
    short = {name: partial(autoattack._MAKE[name], steps=10) for name in ("apgd-ce", "apgd-t", "fab-t")}
    monkeypatch.setattr(autoattack, "_MAKE", {**autoattack._MAKE, **short})


@pytest.mark.usefixtures("_few_steps")
def test_strong_is_standard_bit_for_bit_and_breaks_more():
    torch.manual_seed(1)
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 4)).eval(), torch.rand(12, 1, 3, 3)
    y = net(x).argmax(1)
    standard, strong = (AutoAttack(0.1, version=version, seed=3).run(net, x, y) for version in ("standard", "strong"))
    assert 0 < standard.robust.sum() < 12
    assert [*strong.robust_after.items()][:5] == [*standard.robust_after.items()]
    assert torch.equal(strong.x_adv[~standard.robust], standard.x_adv[~standard.robust])
    assert not (strong.robust & ~standard.robust).any()


@pytest.mark.usefixtures("_few_queries")
@pytest.mark.filterwarnings(
    "ignore:AutoAttack leaves out", "ignore:The gradient is zero", "ignore:The outputs are prob"
)
def test_strong_breaks_the_plateau_and_standard_does_not():
    net, x, y = plateau()
    assert AutoAttack(EPS).run(net, x, y).robust.all()
    assert not AutoAttack(EPS, version="strong").run(net, x, y).robust.any()


@pytest.mark.usefixtures("_few_queries")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("classes", [3, 10])
def test_strong_costs_at_most_half_of_standard_more(classes):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, classes)).eval()
    x = torch.rand(1, 1, 2, 2)
    search, passes = SearchModel(net), []
    for attack in AutoAttack(1e-6, version="strong").for_classes(classes).sub_attacks():
        before = search.passes.forward + search.passes.backward
        assert not run_sub_attack(attack, search, x, net(x).argmax(1), 0)[1]
        passes.append(search.passes.forward + search.passes.backward - before)
    assert passes[-1] <= (sum(passes[:-1]) + 5000 - QUERIES) / 2
