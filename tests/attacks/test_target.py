"""Targeted attacks: the contract of all attacks with a target, and bad targets."""

import copy
from functools import partial

import pytest
import torch
from helpers.every_attack import ATTACKS, MAKE, assert_allowed, batch, network
from torch import nn

from lightning_paf.attacks import (
    APGD,
    FAB,
    ILCM,
    PGD,
    AutoAttack,
    CarliniWagner,
    DeepFool,
    EnsembleMIFGSM,
    JointAttack,
    JointGrid,
    Recorded,
    ReferenceAutoAttack,
    Restarts,
    SignOPT,
    Square,
    UniversalPerturbation,
    WorstOf,
)
from lightning_paf.attacks.target import TowardTarget
from lightning_paf.evaluation.evaluate import Evaluation
from lightning_paf.evaluation.samples import Samples

pytestmark = pytest.mark.usefixtures("short_budgets")

OWN_TARGET = {ILCM, ReferenceAutoAttack}  # without the option
MAKE_TARGETED = MAKE | {
    APGD: lambda: APGD(steps=10),
    JointGrid: lambda: JointGrid(PGD(steps=5), [0.0]),
    SignOPT: lambda: SignOPT(4.0, queries=400, starts=20, directions=20),
}
MAP = [1, 2, 3, 4, 0]


def linear():
    """A linear model of 5 classes, and images with all labels."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).requires_grad_(False)
    net[1].weight.normal_()
    net[1].bias.copy_(-net[1].weight.sum(1) / 2)
    x = (0.5 + torch.randn(40, 1, 8, 8) / 5).clamp(0, 1)
    return net, x, net(x).argmax(1)


targeted = pytest.mark.parametrize("cls", [cls for cls in ATTACKS if cls not in OWN_TARGET])


def made(cls, target):
    attack = copy.copy(MAKE_TARGETED.get(cls, cls)())
    attack.target = target
    if cls is EnsembleMIFGSM:
        attack.surrogates = [linear()[0]]
    return attack


WITH_MAP = (PGD, Square, DeepFool, JointAttack, Recorded, AutoAttack, Restarts)


@pytest.mark.parametrize(
    ("cls", "target"), [(cls, 2) for cls in ATTACKS if cls not in OWN_TARGET] + [(cls, MAP) for cls in WITH_MAP]
)
def test_targeted_attacks_raise_the_probability_of_the_target_in_the_ball(cls, target):
    net, x, y = linear()
    goals = torch.tensor(MAP)[y] if isinstance(target, list) else torch.full_like(y, target)
    attack = made(cls, target)
    x_adv = attack(net, x, y)
    assert_allowed(attack, x, x_adv)
    assert torch.equal(x_adv[y == goals], x[y == goals])
    before, after = (net(images).softmax(1).gather(1, goals[:, None]).squeeze(1) for images in (x, x_adv))
    moved = (x_adv != x).flatten(1).any(1)
    assert moved.any()
    assert (after[moved] > before[moved]).float().mean() > 0.9
    assert attack.succeeded(net(x_adv), y).equal((net(x_adv).argmax(1) == goals) & (y != goals))
    assert attack.describe()["target"] == target


@targeted
def test_a_target_outside_the_classes_is_refused_in_the_call(cls):
    (x, y), attack = batch(), made(cls, 5)
    with pytest.raises(ValueError, match=r"target must be a class from 0 to 4, got 5"):
        attack(network(), x, y)


@pytest.mark.parametrize(
    "attack",
    [FAB(5.0, norm="l2", target=1), DeepFool(target=1), CarliniWagner(steps=100, searches=6, lr=0.05, target=1)],
)
def test_attacks_find_the_distance_to_the_target_of_a_linear_model(attack):
    net, x, _ = linear()
    x = 0.5 + (x - 0.5) / 3  # the pixel range does not matter
    y = net(x).argmax(1)
    x, y, weight = x[y != 1], y[y != 1], net[1].weight
    logits = net(x)
    # The distance to the half space of each other class; that to their intersection is larger.
    least = ((logits - logits[:, 1:2]) / (weight - weight[1]).norm(dim=1).clamp_min(1e-9)).amax(1)
    x_adv = attack(net, x, y) if isinstance(attack, FAB) else attack.nearest(net, x, y)[0]
    assert (net(x_adv).argmax(1) == 1).all()
    distances = (x_adv - x).flatten(1).norm(dim=1)
    assert (distances >= least * (1 - 1e-4)).all()
    assert (distances <= 1.6 * least + 0.05).float().mean() > 0.9


@pytest.mark.parametrize("make", [partial(FAB, steps=20), partial(Square, queries=50)])
def test_a_target_of_two_classes_is_the_untargeted_search(make):
    net, x, _ = linear()
    net = nn.Sequential(net, nn.Linear(5, 2)).requires_grad_(False)
    x = x[net(x).argmax(1) == 0]
    y = torch.zeros(len(x), dtype=torch.int64)
    torch.manual_seed(0)
    free = make(8 / 255)(net, x, y)
    torch.manual_seed(0)
    torch.testing.assert_close(make(8 / 255, target=1)(net, x, y), free)


def test_undefined_logits_are_no_success_of_a_target():
    def forward(x):
        return torch.stack([x.sum(1), torch.full((len(x),), torch.nan), x[:, 0]], dim=1)

    view = TowardTarget(forward, 2)
    assert view(torch.ones(2, 3)).tolist() == [[1, 0], [1, 0]]
    assert not hasattr(view, "exact")
    assert not PGD(target=1).succeeded(forward(torch.ones(2, 3)), torch.tensor([0, 2])).any()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (-1, "target must be a class from 0"),
        ([], "target must be a class from 0"),
        ([1.5, 0], "target must be a class from 0"),
        (True, "target must be a class from 0"),
        ([1, 1, 0], r"target of class 1 must be another class, got \[1, 1, 0\]"),
    ],
)
def test_bad_targets_are_refused_at_construction(target, message):
    for make in (PGD, FAB, Square, DeepFool, AutoAttack, APGD):
        with pytest.raises(ValueError, match=message):
            make(target=target)


def test_targets_that_do_not_fit_are_refused():
    net, x, y = linear()
    with pytest.raises(ValueError, match="target must list 5 classes, one for each label, got 3"):
        PGD(target=[1, 2, 0])(net, x, y)
    with pytest.raises(ValueError, match="must agree in target"):
        WorstOf([PGD(target=1), PGD()])
    with pytest.raises(ValueError, match="search_loss must be ce with a target, got dlr"):
        APGD(search_loss="dlr", target=1)
    with pytest.raises(ValueError, match="attacks must be among apgd-ce, fab-t, square, got apgd-t"):
        AutoAttack(version="custom", attacks=["apgd-t"], target=1)
    with pytest.raises(ValueError, match="target must be one class for one perturbation"):
        UniversalPerturbation(target=MAP).fitted(net, x, y)
    with pytest.raises(ValueError, match="target must be a class from 0 to 4, got 7"):
        Evaluation(net, AutoAttack(target=7), _samples(x, y)).run()


def test_an_evaluation_counts_images_of_the_target_class_only():
    net, x, y = (part[:12] if isinstance(part, torch.Tensor) else part for part in linear())
    for attack in (PGD(0.05, target=2), Restarts(PGD(0.05, target=MAP), 2)):
        result = Evaluation(net, attack, _samples(x, y), block_size=16).run()
        fooled = result.outcomes == 2
        assert fooled.any()
        goals = torch.full_like(y, 2) if attack.target == 2 else torch.tensor(MAP)[y]
        assert (result.adversarial[fooled] == goals.numpy()[fooled]).all()
        assert not fooled[(y == goals).numpy()].any()


def _samples(x, y):
    ids = torch.arange(len(y)).numpy()
    return Samples(ids, lambda chosen: (x[chosen], y[chosen]))
