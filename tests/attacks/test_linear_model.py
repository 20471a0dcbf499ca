"""On a linear model the best perturbation, hence the exact robust accuracy, is known in closed form."""

import math
from fractions import Fraction

import pytest
import torch
from torch import nn

from lightning_paf.attacks import FGSM, PGD, RSFGSM, Restarts, WorstOf
from lightning_paf.functional import cross_entropy, dlr, margin

DUAL = {"linf": 1, "l2": 2, "l1": math.inf}
EPS = {"linf": 0.05, "l2": 0.2, "l1": 0.3}


def grey_images(n):
    """Images (n, 1, 4, 4) further from black and white than any radius in this file."""
    return 0.5 + 0.2 * (torch.rand(n, 1, 4, 4) - 0.5)


def linear(classes):
    torch.manual_seed(classes)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, classes))


def normal(model):
    """Gradient of `z_1 - z_0`."""
    return (model[1].weight[1] - model[1].weight[0]).detach()


def binary(images=grey_images):
    """Two classes; all labels are 0."""
    model = linear(2)
    return model, images(12), torch.zeros(12, dtype=torch.long)


def best_margin(model, x, norm, eps):
    """Largest `z_1 - z_0` in the ball, without pixel range."""
    z = model(x).detach()
    return z[:, 1] - z[:, 0] + eps * normal(model).norm(p=DUAL[norm])


def assert_optimal(attack, norm):
    model, x, y = binary()
    found = margin(model(attack(model, x, y)), y).detach()
    torch.testing.assert_close(found, best_margin(model, x, norm, EPS[norm]), rtol=1e-4, atol=1e-5)


norms = pytest.mark.parametrize("norm", ["linf", "l2", "l1"])


@norms
@pytest.mark.parametrize("loss", [cross_entropy, margin])
@pytest.mark.parametrize("start", ["uniform", "gaussian", "none"])
def test_pgd_reaches_the_optimum(norm, start, loss):
    eps = EPS[norm]
    assert_optimal(PGD(eps, norm=norm, step_size=eps / 4, steps=30, start=start, loss=loss), norm)


@norms
def test_fgsm_reaches_the_optimum_in_one_step(norm):
    assert_optimal(FGSM(EPS[norm], norm=norm), norm)


def test_random_start_fgsm_reaches_the_optimum_with_a_step_across_the_ball():
    assert_optimal(RSFGSM(0.05, step_size=0.1), "linf")


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


def four_classes(norm, n=24):
    """Model, images, labels, an eps that fools the model on half of the images, and whether each is robust."""
    model = linear(4)
    model[1].bias.data = -model(torch.full((1, 1, 4, 4), 0.5)).detach()[0]
    x = grey_images(n)
    z = model(x).detach()
    y = z.argmax(1)
    weight = model[1].weight.detach()
    distance = (z.gather(1, y[:, None]) - z) / (weight[y][:, None] - weight).norm(p=DUAL[norm], dim=2)
    radius = distance.scatter(1, y[:, None], math.inf).amin(1)
    eps = radius.median().item()
    clear = (radius - eps).abs() > 0.03 * eps  # else rounding decides
    return model, x[clear], y[clear], eps, (radius > eps)[clear]


@norms
def test_worst_of_several_losses_finds_the_exact_robust_accuracy(norm):
    model, x, y, eps, robust = four_classes(norm)

    def towards(target):  # each loss is linear, so each attack reaches its optimum
        return lambda z, labels: z[:, target] - z.gather(1, labels[:, None])[:, 0]

    attacks = [PGD(eps, norm=norm, step_size=eps / 4, steps=30, start="none", loss=towards(c)) for c in range(4)]
    assert torch.equal(model(WorstOf(attacks)(model, x, y)).argmax(1) == y, robust)


def test_restarts_with_dlr_fool_more_images_than_one_start():
    model, x, y, eps, robust = four_classes("linf")
    attack = PGD(eps, step_size=eps / 4, steps=30, loss=dlr)
    torch.manual_seed(0)
    once = model(attack(model, x, y)).argmax(1) == y
    many = model(Restarts(attack, 8)(model, x, y)).argmax(1) == y
    assert robust.sum() <= many.sum() <= once.sum()


def test_targeted_attack_is_a_loss():
    model, x, y, _, _ = four_classes("linf")
    target = (y + 1) % 4
    attacked = PGD(Fraction(1, 2), step_size=0.1)(model, x, target, loss=lambda z, t: -cross_entropy(z, t))
    assert (model(attacked).argmax(1) == target).all()
