"""A module whose robust accuracy on its samples is known in closed form."""

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_paf.evaluation import Outcome

LEVELS = torch.tensor([0.1, 0.3, 0.45, 0.48, 0.52, 0.55, 0.7, 0.9, 0.9, 0.1, 0.6])
LABELS = (LEVELS > 0.5).long()
LABELS[7] = 0  # misclassified when clean
EPS = 0.06
EXPECTED = torch.where((LEVELS - 0.5).abs() < EPS, Outcome.FOOLED, Outcome.ROBUST)
EXPECTED[7] = Outcome.MISCLASSIFIED
IMAGES = LEVELS.view(-1, 1, 1, 1).expand(-1, 1, 4, 4).clone()


class Brightness(torch.nn.Module):
    """Class 1 if the mean pixel is above one half; under linf, eps changes it by at most eps."""

    def forward(self, x: Tensor) -> Tensor:
        level = x.mean((1, 2, 3))
        return torch.stack([0.5 - level, level - 0.5], 1) * 10


class BrightnessModule(LightningModule):
    """Has a `Brightness` model, which its training does not change."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Brightness()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def training_step(self, batch, batch_idx):
        return self.weight.sum() ** 2

    def validation_step(self, batch, batch_idx):
        pass

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def data(batch_size: int = 4, **options) -> DataLoader:
    return DataLoader(TensorDataset(IMAGES, LABELS), batch_size=batch_size, **options)
