import pytest
import torch
from helpers.fakes import images, tiny_classifier
from torch.nn import functional as F

from lightning_paf.attacks import PGD
from lightning_paf.objectives import MART
from lightning_paf.objectives.mart import _runner_up

ATTACK = PGD(0.1, step_size=0.05, steps=3, start="none")


def still():
    model = tiny_classifier().train()
    model.net.bn.momentum = 0.0
    return model


def test_the_loss_is_the_papers_formula():
    model, (x, y) = still(), images()
    loss = MART(5)(model, x, y, ATTACK).loss
    p, q = model(x).softmax(1), model(ATTACK(model, x, y)).softmax(1)
    rows = torch.arange(8)
    others = q.clone()
    others[rows, y] = 0
    boosted = -q[rows, y].log() - (1 - others.amax(1)).log()
    divergence = (p * (p / q).log()).sum(1) * (1 - p[rows, y])
    torch.testing.assert_close(loss, (boosted + 5 * divergence).mean())


def test_without_weight_and_with_two_classes_it_is_twice_cross_entropy():
    """The runner-up is then the only other class."""
    model, (x, y) = tiny_classifier(2).train(), images(num_classes=2)
    model.net.bn.momentum = 0.0
    expected = 2 * F.cross_entropy(model(ATTACK(model, x, y)), y)
    torch.testing.assert_close(MART(0)(model, x, y, ATTACK).loss, expected)


def test_saturated_predictions_have_finite_losses_and_gradients():
    model, (x, y) = still(), images()
    with torch.no_grad():
        model.net.fc.weight.mul_(1e4)
    loss = MART()(model, x, y, ATTACK).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert loss > 20  # log(1e-12), the floor of the authors' code, would hide how wrong it is
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match=r"weight must be .*got -1. Pass --model.objective.weight 5"):
        MART(-1)
    with pytest.raises(ValueError, match=r"weight must be .*got inf"):
        MART(float("inf"))


def test_the_runner_up_is_exact_in_half_precision():
    """Where the network is sure, `1 - p` is a number that bfloat16 cannot tell from 0."""
    torch.manual_seed(0)
    logits = 12 * torch.nn.functional.one_hot(torch.arange(64) % 10, 10).float() + torch.randn(64, 10)
    shares = torch.nn.functional.one_hot((torch.arange(64) + 1) % 10, 10).float()
    exact = _runner_up(logits.bfloat16().float(), shares)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(_runner_up(logits.bfloat16(), shares), exact)
