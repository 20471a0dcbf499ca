"""Running statistics that start with the first batch."""

import pytest
import torch
from helpers.trainers import trainer
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_paf.callbacks import BatchNormStart


class Normed(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(2, momentum=0.01)
        self.means: list[torch.Tensor] = []

    def training_step(self, batch, batch_idx):
        loss = self.bn(batch[0]).square().sum()
        self.means.append(self.bn.running_mean.clone())
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(module, folder, **options):
    data = torch.randn(12, 2, generator=torch.Generator().manual_seed(0)) + 5
    trainer(folder, BatchNormStart(), **options).fit(module, DataLoader(TensorDataset(data), batch_size=4))
    return data


def test_statistics_start_with_the_first_batch(tmp_path):
    module = Normed()
    data = fit(module, tmp_path)
    torch.testing.assert_close(module.means[0], data[:4].mean(0))
    torch.testing.assert_close(module.means[1], 0.99 * data[:4].mean(0) + 0.01 * data[4:8].mean(0))
    assert module.bn.momentum == 0.01


def test_the_first_step_can_have_several_batches(tmp_path):
    module = Normed()
    data = fit(module, tmp_path, accumulate_grad_batches=2)
    torch.testing.assert_close(module.means[1], data[4:8].mean(0))
    assert module.bn.momentum == 0.01


def test_momenta_are_restored_after_an_error(tmp_path):
    module = Normed()
    module.training_step = lambda batch, batch_idx: (_ for _ in ()).throw(RuntimeError("lost the device"))
    with pytest.raises(RuntimeError, match="lost the device"):
        fit(module, tmp_path)
    assert module.bn.momentum == 0.01
