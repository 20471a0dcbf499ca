"""Soft labels and CutMix, alone and in the data module."""

import numpy as np
import pytest
import torch
from helpers.fakes import write_npz_dataset

from lightning_paf.data import CutMix, RobustDataModule
from lightning_paf.data.mixing import distributions


def test_smoothing_is_that_of_torch():
    labels, logits = torch.tensor([0, 2]), torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    cross_entropy = torch.nn.functional.cross_entropy
    for smoothing in (0.0, 0.1, 0.9):
        soft = cross_entropy(logits, distributions(labels, 4, torch.full((2,), smoothing)))
        torch.testing.assert_close(soft, cross_entropy(logits, labels, label_smoothing=smoothing))


@pytest.mark.parametrize("seed", range(8))
def test_labels_are_mixed_by_area_and_pixels_come_from_the_partner(seed):
    torch.manual_seed(seed)
    images = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 3, 8, 10).contiguous()
    mixed, targets = CutMix()(images, torch.eye(6))
    assert torch.equal(images, torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 3, 8, 10))
    assert mixed.dtype == torch.uint8
    for i in range(6):
        areas = torch.stack([(mixed[i, 0] == j).float().mean() for j in range(6)])
        torch.testing.assert_close(targets[i], areas)
        pasted = (mixed[i, 0] != i).nonzero()
        if len(pasted):  # one rectangle
            height, width = (pasted.amax(0) - pasted.amin(0) + 1).tolist()
            assert height * width == len(pasted)


def test_areas_are_of_all_sizes():
    torch.manual_seed(0)
    images, targets = torch.zeros(2, 1, 32, 32, dtype=torch.uint8), torch.eye(2)
    kept = torch.stack([CutMix()(images, targets)[1][0, 0] for _ in range(300)])
    assert kept.min() < 0.3
    assert 0.6 < kept.mean() < 0.95  # half of the partners are the images themselves; rectangles are cut at the edges


def module(tmp_path, **options) -> RobustDataModule:
    root = write_npz_dataset(tmp_path / "data")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "pool.npz", image=rng.integers(0, 256, (40, 8, 8, 3), np.uint8), label=np.arange(40) % 3)
    data = RobustDataModule(
        "npz",
        root,
        num_classes=3,
        synthetic=tmp_path / "pool.npz",
        real_fraction=0.5,
        batch_size=16,
        val_size=8,
        num_workers=0,
        **options,
    )
    data.prepare_data()
    data.setup("fit")
    return data


def test_only_synthetic_labels_are_smoothed(tmp_path):
    data = module(tmp_path, synthetic_smoothing=0.3)
    raw = next(iter(data.train_dataloader()))
    images, targets = data.on_after_batch_transfer(raw, 0)
    assert images.shape == (16, 3, 8, 8)
    own = targets[torch.arange(16), raw.labels]
    torch.testing.assert_close(own, torch.where(raw.synthetic, 0.8, 1.0))
    torch.testing.assert_close(targets.sum(1), torch.ones(16))


def test_without_smoothing_and_mixing_and_in_evaluation_labels_are_labels(tmp_path):
    for options in ({}, {"synthetic_smoothing": 0.1, "mixing": CutMix()}):
        data = module(tmp_path, **options)
        for loader in (data.val_dataloader(), *(() if options else (data.train_dataloader(),))):
            assert data.on_after_batch_transfer(next(iter(loader)), 0)[1].dtype == torch.int64


def test_mixed_training_batches_have_soft_labels(tmp_path):
    data = module(tmp_path, mixing=CutMix())
    raw = next(iter(data.train_dataloader()))
    torch.manual_seed(1)
    images, targets = data.on_after_batch_transfer(raw, 0)
    assert images.max() <= 1
    assert targets.shape == (16, 3)
    assert ((targets > 0).sum(1) == 2).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RobustDataModule(synthetic_smoothing=1.0), r"synthetic_smoothing must be in \[0, 1\), got 1.0"),
        (
            lambda: RobustDataModule(synthetic_smoothing=0.1, real_fraction=1),
            "must be 0 without synthetic images, got 0.1",
        ),
        (lambda: CutMix(0), "alpha must be finite and > 0, got 0. Pass --data.mixing.alpha 1"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
