"""Sub-attacks are seeded and confirmed by the exact model, as are the searches of AutoAttack."""

import copy
import sys

import pytest
import torch
from helpers.devices import devices
from helpers.digits_net import Recorder, digits
from torch import nn

from lightning_paf.attacks import APGD, FAB, PGD, Attack, Square, run_sub_attack
from lightning_paf.functional import geometry_of, margin
from lightning_paf.nn.modes import full_precision
from lightning_paf.speed.search_model import Passes, SearchModel


class Idle(Attack):
    """Changes nothing."""

    def perturb(self, forward, x, y, loss):
        return x


@devices
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "attack", [PGD(0.12, step_size=0.03), APGD(0.12, steps=10), FAB(0.12, steps=10), Square(0.15, queries=100)]
)
def test_every_success_is_confirmed_and_all_other_images_are_returned_unchanged(attack, precision, device):
    net, x, y = (copy.deepcopy(part).to(device) for part in digits(40))
    before, search = x.clone(), SearchModel(net, precision)
    x_adv, fooled = run_sub_attack(attack, search, x, y, seed=0)
    assert search.precision == precision
    assert 0 < fooled.sum() < 40
    with full_precision():
        assert torch.equal(net(x_adv).argmax(1) != y, fooled)
    assert torch.equal((x_adv != x).flatten(1).any(1), fooled)
    assert torch.equal(x, before)


def test_seed_determines_the_result_and_generators_are_restored():
    net, x, y = digits(20)
    attack, search = PGD(0.12, step_size=0.03), SearchModel(net)
    state = torch.get_rng_state()
    first, again, other = (run_sub_attack(attack, search, x, y, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_attack_without_a_result_costs_no_confirmation():
    net, x, y = digits(5)
    search = SearchModel(net, fold=False)
    x_adv, fooled = run_sub_attack(Idle(), search, x, y, seed=0)
    assert torch.equal(x_adv, x)
    assert not fooled.any()
    assert search.passes == Passes()


class Misclassifying(SearchModel):
    """The fast path misclassifies every changed image."""

    def forward(self, x):
        logits = super().forward(x)
        changed = (x * 16 - (x * 16).round()).abs().amax((1, 2, 3)) > 1e-4  # clean digits have 17 grey levels
        return torch.where(changed[:, None], -logits, logits)


def test_images_that_only_the_fast_path_misclassifies_are_attacked_again_on_the_exact_model():
    net, x, y = digits(40)
    search = Misclassifying(net, fold=False)
    attack = PGD(0.12, step_size=0.03, steps=10)
    _, fooled = run_sub_attack(attack, search, x, y, seed=0)
    _, expected = run_sub_attack(attack, SearchModel(net, fold=False), x, y, seed=0)
    assert expected.sum() > 5
    assert (fooled ^ expected).sum() <= 2  # other starts
    assert search.passes.exact > 200  # the second search


def test_model_is_left_as_found_and_autocast_is_off():
    net, x, y = digits(5)
    net = nn.Sequential(copy.deepcopy(net), nn.Identity()).train()
    dtypes = set()
    net[1].register_forward_hook(lambda _, __, out: dtypes.add(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        run_sub_attack(PGD(0.12, step_size=0.06, steps=2), SearchModel(net), x, y, seed=0)
    assert dtypes == {torch.float32}
    assert net.training


SEARCHES = [
    APGD(0.12, steps=20, batch_size=15),
    APGD(0.6, norm="l2", steps=20),
    FAB(0.12, steps=20),
    FAB(0.59, norm="l2", steps=7),
    Square(0.2, queries=105),
    Square(0.95, norm="l2", queries=105),
]
searches = pytest.mark.parametrize("attack", SEARCHES, ids=lambda attack: f"{attack.label}-{attack.norm}")


@searches
def test_rare_checks_find_the_same(attack, monkeypatch):
    # On a GPU the searches check for success every few iterations, because a check synchronises.
    net, x, y = digits(30)
    found = []
    for interval in (1, 10):
        monkeypatch.setattr(sys.modules[type(attack).__module__], "_CPU_INTERVAL", interval)
        torch.manual_seed(0)
        x_adv = attack(net, x, y)
        assert (geometry_of(attack.norm).size(x_adv - x) <= attack.radius).all()
        found.append(net(x_adv).argmax(1) == y)
    assert 0 < found[0].sum() < 30
    assert torch.equal(*found)


@searches
def test_exact_model_confirms_every_success(attack):
    """Where the label leads by 0.5 more in the exact model, successes have a margin above 0.5."""
    net, x, y = digits(60)
    x, y = x[y == 3], y[y == 3]
    exact = Recorder(lambda images: net(images) + 0.5 * torch.eye(10)[3])
    attack = copy.copy(attack)
    attack.eps = 2.5 * attack.eps
    torch.manual_seed(0)
    x_adv = attack(Recorder(net, exact), x, y)
    changed = (x_adv != x).flatten(1).any(1)
    assert changed.any()
    assert (margin(net(x_adv[changed]), y[changed]) > 0.5).all()
    ranking = 1 if isinstance(attack, FAB) else 0  # FAB ranks its targets first
    assert all((net(images).argmax(1) != 3).all() for images in exact.images[ranking:]), "candidates only"
