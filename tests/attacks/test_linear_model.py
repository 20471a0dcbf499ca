"""On a linear model the best perturbation, hence the exact robust accuracy, is known in closed form."""

import math
from fractions import Fraction

import pytest
import torch
from torch import nn

from lightning_paf.attacks import FGSM, NFGSM, PGD, RSFGSM, AutoAttack, ReferenceAutoAttack, Restarts, WorstOf
from lightning_paf.functional import cross_entropy, dlr, margin

PIXELS = 16
DUAL = {"linf": 1, "l2": 2, "l1": math.inf}
EPS = {"linf": 0.05, "l2": 0.2, "l1": 0.3}


def linear(classes, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, classes))


def grey_images(n, spread=0.2):
    """Images (n, 1, 4, 4) further from black and white than any radius in this file."""
    return 0.5 + spread * (torch.rand(n, 1, 4, 4) - 0.5)


def normal(model):
    """Gradient of `z_1 - z_0`."""
    return (model[1].weight[1] - model[1].weight[0]).detach()


def binary(n=12, seed=0, images=grey_images):
    model = linear(2, seed)
    x = images(n)
    return model, x, torch.zeros(n, dtype=torch.long)


def best_margin(model, x, norm, eps):
    """Largest `z_1 - z_0` in the ball, where the pixel range does not matter."""
    z = model(x).detach()
    return z[:, 1] - z[:, 0] + eps * normal(model).norm(p=DUAL[norm])


@pytest.mark.parametrize("loss", [cross_entropy, margin])
@pytest.mark.parametrize("start", ["uniform", "gaussian", "none"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_pgd_reaches_the_optimum(norm, start, loss):
    model, x, y = binary()
    eps = EPS[norm]
    attack = PGD(eps, norm=norm, step_size=eps / 4, steps=30, start=start, loss=loss)
    torch.testing.assert_close(
        margin(model(attack(model, x, y)), y).detach(), best_margin(model, x, norm, eps), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_fgsm_reaches_the_optimum_in_one_step(norm):
    model, x, y = binary()
    found = margin(model(FGSM(EPS[norm], norm=norm)(model, x, y)), y)
    torch.testing.assert_close(found.detach(), best_margin(model, x, norm, EPS[norm]), rtol=1e-4, atol=1e-5)


def test_random_start_fgsm_reaches_the_optimum_with_a_step_across_the_ball():
    model, x, y = binary()
    found = margin(model(RSFGSM(0.05, step_size=0.1)(model, x, y)), y)
    torch.testing.assert_close(found.detach(), best_margin(model, x, "linf", 0.05), rtol=1e-4, atol=1e-5)


def test_nfgsm_without_noise_is_fgsm():
    model, x, y = binary()
    torch.testing.assert_close(NFGSM(0.05, noise=0)(model, x, y), FGSM(0.05)(model, x, y))


@pytest.mark.parametrize("attack", [PGD(0.3, step_size=0.1), FGSM(0.3), RSFGSM(0.3, step_size=0.6)])
def test_linf_optimum_with_the_pixel_range(attack):
    model, x, y = binary(images=lambda n: torch.rand(n, 1, 4, 4))
    best = (x + 0.3 * normal(model).sign().view(1, 1, 4, 4)).clamp(0, 1)
    torch.testing.assert_close(attack(model, x, y), best, atol=1e-6, rtol=0)


def test_l1_optimum_with_the_pixel_range():
    # The optimum fills the pixels in the order of their weights, each as far as its range allows.
    model, x, y = binary(images=lambda n: torch.rand(n, 1, 4, 4))
    w, eps = normal(model), 2.0
    room = torch.where(w > 0, 1 - x.flatten(1), x.flatten(1))
    order = w.abs().argsort(descending=True)
    used = torch.minimum(room[:, order], (eps - room[:, order].cumsum(1) + room[:, order]).clamp_min(0))
    z = model(x).detach()
    best = z[:, 1] - z[:, 0] + (used * w.abs()[order]).sum(1)
    attack = PGD(eps, norm="l1", step_size=0.1, steps=100, best=True, start="none", loss=margin)
    found = margin(model(attack(model, x, y)), y).detach()
    assert (found <= best + 1e-5).all()
    assert ((best - found) / (best - margin(z, y))).max() < 0.03


def multiclass(classes, norm, n=24):
    """Images in random classes with an eps that breaks half of them, none near the edge of being robust."""
    model = linear(classes, seed=classes)
    model[1].bias.data = -model(torch.full((1, 1, 4, 4), 0.5)).detach()[0]
    x = grey_images(n)
    z = model(x).detach()
    y = z.argmax(1)
    weight = model[1].weight.detach()
    distance = (z.gather(1, y[:, None]) - z) / (weight[y][:, None] - weight).norm(p=DUAL[norm], dim=2)
    radius = distance.scatter(1, y[:, None], math.inf).amin(1)
    eps = radius.median().item()
    clear = ((radius - eps).abs() > 0.03 * eps).nonzero().squeeze(1)
    return model, x[clear], y[clear], eps, (radius > eps)[clear]


class QuickReference(ReferenceAutoAttack):
    """The complete ensemble, with fewer queries for Square."""

    def _adversary(self, model, x, y):
        adversary, run = super()._adversary(model, x, y)
        adversary.square.n_queries = 50
        return adversary, run


OWN = [("linf", 2), ("linf", 4), ("linf", 12), ("l2", 3), ("l2", 5)]


@pytest.mark.parametrize(
    ("ensemble", "norm", "classes"),
    [(AutoAttack, *case) for case in OWN]
    + [(ReferenceAutoAttack, *case) for case in [("linf", 2), ("l2", 5), ("l1", 2), ("l1", 4)]],
)
def test_autoattack_finds_the_exact_robust_accuracy(ensemble, norm, classes):
    model, x, y, eps, robust = multiclass(classes, norm)
    assert 0 < robust.sum() < len(y)
    targeted = ["apgd-t"] if classes >= 4 else []
    attack = ensemble(eps, norm=norm, version="custom", attacks=["apgd-ce", *targeted, "fab-t"])
    result = attack.run(model, x, y)
    assert torch.equal(result.robust, robust)
    assert torch.equal(model(result.x_adv).argmax(1) == y, robust)


@pytest.mark.parametrize("ensemble", [AutoAttack, QuickReference])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_standard_autoattack_finds_the_exact_robust_accuracy(ensemble, norm):
    model, x, y, eps, robust = multiclass(5, norm)
    if norm == "l2":  # Square's l2 start tiles the image 5 x 5
        model = nn.Sequential(nn.AvgPool2d(2), model)
        x, eps = x.repeat_interleave(2, 2).repeat_interleave(2, 3), 2 * eps
    result = ensemble(eps, norm=norm).run(model, x, y)
    assert torch.equal(result.robust, robust)
    assert list(result.robust_after) == ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]
    assert list(result.robust_after.values()) == sorted(result.robust_after.values(), reverse=True)
    assert result.robust_after["clean"] == len(y)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_worst_of_several_losses_finds_the_exact_robust_accuracy(norm):
    model, x, y, eps, robust = multiclass(4, norm)

    def towards(target):  # each loss is linear, so each attack reaches its optimum
        return lambda z, labels: z[:, target] - z.gather(1, labels[:, None])[:, 0]

    attacks = [PGD(eps, norm=norm, step_size=eps / 4, steps=30, start="none", loss=towards(c)) for c in range(4)]
    assert torch.equal(model(WorstOf(attacks)(model, x, y)).argmax(1) == y, robust)


def test_restarts_with_dlr_find_what_one_start_misses():
    model, x, y, eps, robust = multiclass(4, "linf")
    attack = PGD(eps, step_size=eps / 4, steps=30, loss=dlr)
    torch.manual_seed(0)
    once = model(attack(model, x, y)).argmax(1) == y
    many = model(Restarts(attack, 8)(model, x, y)).argmax(1) == y
    assert robust.sum() <= many.sum() <= once.sum()


def test_targeted_attack_is_a_loss():
    model, x, y, _, _ = multiclass(4, "linf")
    target = (y + 1) % 4
    attacked = PGD(Fraction(1, 2), step_size=0.1)(model, x, target, loss=lambda z, t: -cross_entropy(z, t))
    assert (model(attacked).argmax(1) == target).all()
