"""SCORE: the formula of the paper, and its distance."""

import torch
from helpers.fakes import images, steady_classifier

from lightning_paf.attacks import PGD
from lightning_paf.nn.modes import frozen
from lightning_paf.objectives import SCORE
from lightning_paf.objectives.score import squared_distance

ATTACK = PGD(0.1, step_size=0.05, steps=3)


def loss_of(objective: SCORE) -> torch.Tensor:
    model = steady_classifier()
    torch.manual_seed(0)
    return objective(model, *images(), ATTACK).loss


def test_the_distance_is_that_of_distributions():
    logits, p = torch.tensor([[100.0, 0, 0], [0.0, 0, 0]]), torch.tensor([[0.0, 1, 0], [1 / 3, 1 / 3, 1 / 3]])
    torch.testing.assert_close(squared_distance(logits, p), torch.tensor([2.0, 0.0]))


def test_the_loss_is_the_formula_of_the_paper():
    model, (x, y) = steady_classifier(), images()
    with frozen(model):
        p = model(x).softmax(1)
    torch.manual_seed(0)
    x_adv = ATTACK(model, x, p, loss=squared_distance)
    clean, adversarial = model(x).softmax(1), model(x_adv).softmax(1)
    target = torch.eye(10)[y]
    expected = ((clean - target) ** 2).sum(1).mean() + 4 * ((adversarial - clean) ** 2).sum(1).mean()
    torch.testing.assert_close(loss_of(SCORE(4)), expected)


def test_distances_below_the_clip_cost_nothing():
    natural = loss_of(SCORE(0))
    assert loss_of(SCORE(4)) > natural
    assert torch.equal(loss_of(SCORE(4, clip=2.0)), natural)
