"""`WorstOf` and `Restarts`: choice of the worst image per example."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from lightning_paf.attacks import PGD, Attack, Restarts, WorstOf
from lightning_paf.functional import cross_entropy, margin


class Shift(Attack):
    """Adds a constant."""

    def __init__(self, amount, **options):
        super().__init__(0.5, **options)
        self.amount = amount
        self.losses = []

    def perturb(self, forward, x, y, loss):
        self.losses.append(loss)
        return x + self.amount


def model_and_batch():
    """Logits (0, x - 1/2): brighter is class 1."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    model[1].weight.data = torch.tensor([[0.0], [1.0]])
    model[1].bias.data = torch.tensor([0.0, -0.5])
    return model, torch.tensor([0.3, 0.4, 0.6, 0.7]).view(4, 1, 1, 1), torch.tensor([0, 0, 1, 1])


def test_keeps_the_largest_loss_of_each_example():
    model, x, y = model_and_batch()
    x_adv = WorstOf([Shift(0.2), Shift(-0.2)])(model, x, y)
    torch.testing.assert_close(x_adv.flatten(), torch.tensor([0.5, 0.6, 0.4, 0.5]))


def test_a_misclassified_image_beats_a_larger_loss():
    # The cross-entropy is larger for the first image, but only the second is misclassified.
    images = torch.zeros(1, 1, 1, 2)

    class Table(nn.Module):
        def forward(self, x):
            right = torch.log(torch.tensor([0.30] + [0.70 / 9] * 9))
            wrong = torch.log(torch.tensor([0.37, 0.40] + [0.23 / 8] * 8))
            return torch.where(x.flatten(1)[:, :1] < 0.15, right, wrong)

    y = torch.tensor([0])
    attacks = [Shift(0.1), Shift(0.2)]
    assert WorstOf(attacks)(Table(), images, y).max() == pytest.approx(0.2)
    assert WorstOf(attacks, loss=cross_entropy)(Table(), images, y).max() == pytest.approx(0.1)


def test_each_attack_raises_its_own_loss_unless_the_call_passes_one():
    model, x, y = model_and_batch()
    with_own, without = Shift(0.1, loss=margin), Shift(0.2)
    worst = WorstOf([with_own, without])
    worst(model, x, y)

    def other(z, labels):
        return -cross_entropy(z, labels)

    chosen = worst(model, x, y, loss=other)
    assert with_own.losses == [margin, other]
    assert without.losses == [cross_entropy, other]
    torch.testing.assert_close(chosen[3] - x[3], torch.full((1, 1, 1), 0.2))  # the comparison follows the loss, too


def test_more_restarts_of_the_same_seed_raise_the_loss():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 64), nn.SELU(), nn.Linear(64, 4))
    x, y = torch.rand(32, 1, 4, 4), torch.randint(4, (32,))
    found = []
    for n in (1, 2, 4, 8):
        torch.manual_seed(1)
        found.append(margin(model(Restarts(PGD(0.1, step_size=0.05, steps=2), n)(model, x, y)), y))
    assert all((more >= fewer).all() for fewer, more in pairwise(found))
    assert (found[-1] > found[0]).any()
