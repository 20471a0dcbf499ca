from fractions import Fraction

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
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


def fit(callback, attack, tmp_path, **options):
    module = Attacked(attack)
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        callbacks=[callback],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 2, "enable_checkpointing": False, **options},
    )
    trainer.fit(module, DataLoader(TensorDataset(torch.zeros(5, 1))), ckpt_path=None)
    return module.radii


def test_radius_and_step_grow_in_a_straight_line_and_are_put_back(tmp_path):
    attack = PGD(Fraction(8, 255), step_size=Fraction(4, 255), steps=5)
    radii = fit(RadiusSchedule(), attack, tmp_path)
    expected = [(8 / 255 * i / 10, 4 / 255 * i / 10) for i in range(10)]
    torch.testing.assert_close(torch.tensor(radii), torch.tensor(expected))
    assert (attack.eps, attack.step_size) == (Fraction(8, 255), Fraction(4, 255))


def test_the_step_may_stay(tmp_path):
    radii = fit(RadiusSchedule(Ramp(start=0.5), step_size=False), PGD(0.1, step_size=0.05), tmp_path)
    assert radii[0] == (0.05, 0.05)
    assert radii[5] == pytest.approx((0.075, 0.05))


def test_attacks_whose_radius_comes_from_eps_and_step_can_be_scaled(tmp_path):
    radii = fit(RadiusSchedule(), NFGSM(0.1, step_size=0.1), tmp_path)
    assert radii[5] == pytest.approx((0.15, 0.05))


def test_an_attack_of_radius_zero_leaves_the_images_alone():
    attack = PGD(0.1, step_size=0.05)
    attack.eps = attack.step_size = 0.0
    x = torch.rand(2, 1, 2, 2)
    assert torch.equal(attack(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), x, torch.tensor([0, 1])), x)


def test_attacks_that_do_not_follow_their_eps_are_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="RadiusSchedule scales eps, which WorstOf does not follow"):
        fit(RadiusSchedule(), WorstOf([PGD(0.1, step_size=0.05)]), tmp_path)


class Above(Schedule):
    def factor(self, progress):
        return 2.0


def test_factors_above_one_are_refused():
    with pytest.raises(ValueError, match=r"a factor in \[0, 1\], got Above from 2 to 2"):
        RadiusSchedule(Above())
    RadiusSchedule(Cosine())
    RadiusSchedule(Piecewise())
