"""Predictions of `predict`: order, identity and several processes."""

import numpy as np
import pytest
import torch
from helpers.trainers import trainer as silent_trainer
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_paf.callbacks.predictions import PredictionWriter

SAMPLES = 11


class Echo(LightningModule):
    """Class i modulo 3 of sample i, predicted if i is even; the probability encodes i."""

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        x, y = batch
        number = x[:, 0].long()
        predicted = torch.where(number % 2 == 0, y, (y + 1) % 3)
        rest = x / 100
        probabilities = (rest / 2).expand(-1, 3).scatter(1, predicted[:, None], 1 - rest)
        return {"probabilities": probabilities, "label": y}


def dataset() -> TensorDataset:
    numbers = torch.arange(SAMPLES)
    return TensorDataset(numbers[:, None].float(), numbers % 3)


def trainer(folder, **options) -> Trainer:
    return silent_trainer(folder, PredictionWriter(), **options)


def check(content, numbers) -> None:
    numbers = np.asarray(numbers)
    assert content["index"].tolist() == numbers.tolist()
    assert content["label"].tolist() == (numbers % 3).tolist()
    assert content["prediction"].tolist() == np.where(numbers % 2 == 0, numbers % 3, (numbers + 1) % 3).tolist()
    assert content["probabilities"].max(1) == pytest.approx(1 - numbers / 100)
    assert content["probabilities"].sum(1) == pytest.approx(np.ones(len(numbers)))
    assert (content["index"].dtype, content["label"].dtype, content["prediction"].dtype) == (np.int64,) * 3
    assert content["probabilities"].dtype == np.float32


@pytest.mark.parametrize("loader", [{}, {"shuffle": True}, {"sampler": list(reversed(range(SAMPLES)))}])
def test_every_sample_is_written_once_in_the_order_of_the_dataset(tmp_path, loader):
    predict = trainer(tmp_path / "run")
    predict.predict(Echo(), DataLoader(dataset(), 4, **loader))
    check(np.load(tmp_path / "run" / "predictions.npz"), range(SAMPLES))


def test_the_same_predictions_replace_the_file(tmp_path):
    predict = trainer(tmp_path)
    for _ in range(2):
        predict.predict(Echo(), DataLoader(dataset(), 4))
    check(np.load(tmp_path / "predictions.npz"), range(SAMPLES))
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.npz"]


@pytest.mark.parametrize("old", [b"", b"PK\x03\x04old"])
def test_a_file_of_unknown_origin_is_kept(old, tmp_path):
    (tmp_path / "predictions.npz").write_bytes(old)
    trainer(tmp_path).predict(Echo(), DataLoader(dataset(), 4))
    assert (tmp_path / "predictions.npz").read_bytes() == old
    (new,) = tmp_path.glob("predictions-????????.npz")
    check(np.load(new), range(SAMPLES))


def test_predictions_of_other_images_are_kept(tmp_path):
    """Indices and labels repeat, as in a corrupted copy of a dataset."""
    numbers, labels = dataset().tensors
    for x in (numbers, numbers + 6):
        trainer(tmp_path).predict(Echo(), DataLoader(TensorDataset(x, labels), 4))
    check(np.load(tmp_path / "predictions.npz"), range(SAMPLES))
    assert len(list(tmp_path.glob("predictions-????????.npz"))) == 1


def test_limited_batches_are_the_first_ones(tmp_path):
    trainer(tmp_path, limit_predict_batches=2).predict(Echo(), DataLoader(dataset(), 4))
    check(np.load(tmp_path / "predictions.npz"), range(8))


def test_samples_of_a_stream_are_numbered_in_order(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(dataset())

    trainer(tmp_path).predict(Echo(), DataLoader(Stream(), 4))
    check(np.load(tmp_path / "predictions.npz"), range(SAMPLES))


def test_half_precision_is_written_as_float32(tmp_path):
    class Half(Echo):
        def predict_step(self, batch, batch_idx):
            result = super().predict_step(batch, batch_idx)
            return {**result, "probabilities": result["probabilities"].bfloat16()}

    trainer(tmp_path).predict(Half(), DataLoader(dataset(), 4))
    assert np.load(tmp_path / "predictions.npz")["probabilities"].dtype == np.float32


@pytest.mark.slow
def test_two_processes_write_every_sample_once(tmp_path):
    predict = trainer(tmp_path, strategy="ddp_fork", devices=2)
    predict.predict(Echo(), DataLoader(dataset(), 4), return_predictions=False)
    parts = [np.load(tmp_path / f"predictions_rank{rank}.npz") for rank in range(2)]
    for part in parts:
        check(part, part["index"])
    assert sorted(np.concatenate([part["index"] for part in parts])) == list(range(SAMPLES))
    assert not (tmp_path / "predictions.npz").exists()
