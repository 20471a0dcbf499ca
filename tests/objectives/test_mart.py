"""MART: the formula of the paper, special cases, and saturated predictions."""

import torch
from helpers.fakes import images, steady_classifier
from torch.nn import functional as F

from lightning_paf.attacks import PGD
from lightning_paf.objectives import MART
from lightning_paf.objectives.mart import _runner_up

ATTACK = PGD(0.1, step_size=0.05, steps=3, start="none")


def test_the_loss_is_the_formula_of_the_paper():
    model, (x, y) = steady_classifier(), images()
    loss = MART(5)(model, x, y, ATTACK).loss
    p, q = model(x).softmax(1), model(ATTACK(model, x, y)).softmax(1)
    rows = torch.arange(8)
    others = q.clone()
    others[rows, y] = 0
    boosted = -q[rows, y].log() - (1 - others.amax(1)).log()
    divergence = (p * (p / q).log()).sum(1) * (1 - p[rows, y])
    torch.testing.assert_close(loss, (boosted + 5 * divergence).mean())


def test_with_weight_0_and_two_classes_it_is_twice_cross_entropy():
    """The runner-up is then the only other class."""
    model, (x, y) = steady_classifier(2), images(num_classes=2)
    expected = 2 * F.cross_entropy(model(ATTACK(model, x, y)), y)
    torch.testing.assert_close(MART(0)(model, x, y, ATTACK).loss, expected)


def test_saturated_predictions_have_finite_losses_and_gradients():
    model, (x, y) = steady_classifier(), images()
    with torch.no_grad():
        model.net.fc.weight.mul_(1e4)
    loss = MART()(model, x, y, ATTACK).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert loss > 20  # log(1e-12), the floor of the authors' code, would hide the size of the error
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_the_runner_up_is_exact_in_half_precision():
    """For confident predictions bfloat16 would round `1 - p` to 0."""
    torch.manual_seed(0)
    logits = 12 * F.one_hot(torch.arange(64) % 10, 10).float() + torch.randn(64, 10)
    target = F.one_hot((torch.arange(64) + 1) % 10, 10).float()
    exact = _runner_up(logits.bfloat16().float(), target)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(_runner_up(logits.bfloat16(), target), exact)
