"""Schedule of the radius of the training attack."""

from fractions import Fraction

import pytest
import torch
from helpers.trainers import trainer
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_paf.attacks import NFGSM, PGD, WorstOf
from lightning_paf.callbacks import RadiusSchedule
from lightning_paf.schedules import Cosine, Piecewise, Ramp, Schedule


class Attacked(LightningModule):
    def __init__(self, attack) -> None:
        super().__init__()
        self.attack = attack
        self.layer = nn.Linear(1, 1)
        self.radii: list[tuple[float, float]] = []

    def training_step(self, batch, batch_idx):
        self.radii.append((self.attack.radius, float(self.attack.step_size)))
        return self.layer(batch[0]).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def radii(callback, attack, folder):
    """Return radius and step size of all steps of a training."""
    module = Attacked(attack)
    trainer(folder, callback, max_epochs=2).fit(module, DataLoader(TensorDataset(torch.zeros(5, 1))))
    return module.radii


def test_radius_and_step_grow_linearly_and_are_restored(tmp_path):
    attack = PGD(Fraction(8, 255), step_size=Fraction(4, 255), steps=5)
    expected = [(8 / 255 * i / 10, 4 / 255 * i / 10) for i in range(10)]
    torch.testing.assert_close(torch.tensor(radii(RadiusSchedule(), attack, tmp_path)), torch.tensor(expected))
    assert (attack.eps, attack.step_size) == (Fraction(8, 255), Fraction(4, 255))


def test_the_step_size_can_be_kept(tmp_path):
    found = radii(RadiusSchedule(Ramp(start=0.5), step_size=False), PGD(0.1, step_size=0.05), tmp_path)
    assert found[0] == (0.05, 0.05)
    assert found[5] == pytest.approx((0.075, 0.05))


def test_attacks_whose_radius_depends_on_eps_and_step_are_scaled(tmp_path):
    assert radii(RadiusSchedule(), NFGSM(0.1, step_size=0.1), tmp_path)[5] == pytest.approx((0.15, 0.05))


def test_an_attack_of_radius_zero_returns_the_images():
    attack = PGD(0.1, step_size=0.05)
    attack.eps = attack.step_size = 0.0
    x = torch.rand(2, 1, 2, 2)
    assert torch.equal(attack(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), x, torch.tensor([0, 1])), x)


def test_attacks_whose_radius_is_not_eps_are_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="needs an attack whose radius is proportional to eps, got WorstOf"):
        radii(RadiusSchedule(), WorstOf([PGD(0.1, step_size=0.05)]), tmp_path)


class Above(Schedule):
    def factor(self, progress):
        return 2.0


def test_factors_above_one_are_refused():
    with pytest.raises(ValueError, match=r"a factor in \[0, 1\], got Above from 2 to 2"):
        RadiusSchedule(Above())
    RadiusSchedule(Cosine())
    RadiusSchedule(Piecewise())
