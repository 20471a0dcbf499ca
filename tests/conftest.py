"""Settings of the whole suite."""

import matplotlib as mpl
import pytest
import torch

mpl.use("Agg")
torch.set_num_threads(1)  # two workers share two cores


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
