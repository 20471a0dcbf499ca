"""Synthetic and NIfTI volumes, episodes and queries."""

import json

import numpy as np
import pytest
import torch

from lightning_paf.data import EpisodeDataModule
from lightning_paf.data.readers.shapes import CLASSES, synthetic_subjects

TINY = {"size": 16, "subjects": 30, "batch_size": 4, "epoch": 8, "test_classes": (6,)}


def batches(data, loader):
    return [data.on_after_batch_transfer(batch, 0) for batch in loader]


def test_synthetic_volumes_hold_all_classes_and_empty_ends():
    found = synthetic_subjects(30, 8, 3, 16, seed=1)
    assert {int(label) for subject in found[::5] for label in np.unique(subject.masks)} == set(range(CLASSES + 1))
    for subject in found:
        assert (subject.images.shape, subject.masks.shape) == ((8, 16, 16, 3), (8, 16, 16))
        assert len(np.unique(subject.masks)) == 3
        assert not subject.masks[[0, -1]].any()
    again = synthetic_subjects(30, 8, 3, 16, seed=1)[4]
    assert all((ours == theirs).all() for ours, theirs in zip(found[4][1:], again[1:], strict=True))


@pytest.mark.parametrize(("ways", "shots"), [(1, 1), (2, 3)])
def test_episodes_have_their_classes_and_other_volumes_as_support(ways, shots):
    data = EpisodeDataModule(**TINY | {"test_classes": (5, 6)}, ways=ways, shots=shots)
    data.setup("fit")
    found = batches(data, data.train_dataloader())
    assert len(found) == 2
    for batch in found:
        assert batch.support.shape == (4, ways, shots, 1, 16, 16)
        assert batch.query_mask.shape == (4, 16, 16)
        assert 0 <= batch.support.min() <= batch.support.max() <= 1
        for way in range(ways):
            assert (batch.support_masks[:, way] == way + 1).flatten(2).any(2).all()
        assert (batch.query_mask > 0).flatten(1).any(1).all()
        assert batch.query_mask.max() <= ways
    slices = data._train_set.slices
    support, query, classes = data._train_set._drawn(7)
    assert len({*classes}) == ways
    assert slices.subject[query] not in slices.subject[support]


def test_test_queries_are_all_slices_of_the_volumes_with_a_class():
    data = EpisodeDataModule(**TINY)
    data.setup("test")
    dataset = data.test_dataloader().dataset
    assert {label for _, label in dataset.pairs} == {6}
    assert len(dataset) == 8 * len(dataset.pairs)
    (batch, *_) = batches(data, data.test_dataloader())
    assert (batch.support[:8] == batch.support[0]).all(), "one support for all slices of a volume"
    assert not batch.query_mask[0].any(), "slices without the class are queries too"
    assert torch.equal(dataset.pair_of[:9], torch.tensor([0] * 8 + [1]))


def write(folder, volume=None, mask=None, labels=3, subjects=6):
    """Write volumes in the layout of the Decathlon, with a class that brightens its cuboid."""
    nibabel = pytest.importorskip("nibabel")
    rng, pairs = np.random.default_rng(0), []
    for number in range(subjects):
        values = rng.integers(0, labels, (20, 24, 4)).astype(np.uint8) if mask is None else mask
        grey = -200 + 100.0 * values + rng.normal(0, 5, values.shape) if volume is None else volume
        pair = {"image": f"./imagesTr/ct_{number}.nii.gz", "label": f"./labelsTr/ct_{number}.nii.gz"}
        for name, content in zip(pair.values(), (grey.astype(np.float32), values), strict=True):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(content, np.diag([1.0, 1.0, 5.0, 1.0])), folder / name)
        pairs.append(pair)
    content = {"labels": {str(value): f"class {value}" for value in range(labels)}, "training": pairs}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def nifti(folder, **options):
    return EpisodeDataModule(folder, train_classes=(1, 2), test_classes=(2,), **{"size": 20} | options)


def test_nifti_volumes_are_windowed_and_resized(tmp_path):
    data = nifti(write(tmp_path), test_dir=tmp_path, window=(-200, 0))
    data.setup("test")
    slices = data.test_dataloader().dataset.slices
    assert slices.names[0] == "ct_0"
    assert slices.images.shape == (6 * 4, 20, 20, 1)
    assert set(np.unique(slices.masks)) == {0, 1, 2}
    column = slices.images[..., 0].astype(float)
    assert column[slices.masks == 2].mean() > column[slices.masks == 1].mean() > column[slices.masks == 0].mean()
    quantiles = nifti(tmp_path, window=None, channels=3)
    quantiles.setup("fit")
    assert quantiles._train_set.slices.images.shape[3] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": np.ones((20, 24, 3), np.uint8), "volume": np.zeros((20, 24, 4))}, "must have the shape"),
        ({"mask": np.full((20, 24, 4), 9, np.uint8)}, r"must hold the labels \[0, 1, 2\] of dataset.json, got \[9.0\]"),
        ({"volume": np.zeros((20, 24)), "mask": np.ones((20, 24), np.uint8)}, "must have three axes"),
        ({"volume": np.full((20, 24, 4), np.nan)}, "must hold finite intensities, got NaN or infinity in 1920 voxels"),
        ({"mask": np.full((20, 24, 4), 0.5, np.float32)}, r"must hold the labels \[0, 1, 2\] .*, got \[0.5\]"),
        ({"mask": np.zeros((20, 24, 4), np.uint8)}, "Class 1 must be on at least 1 slices"),
        ({"subjects": 1}, "Class 1 must be on at least 1 slices of the train volumes, .* got 0"),
        ({"labels": 2}, r"train_classes must be among the labels \[1\], got \[1, 2\]"),
    ],
)
def test_bad_volumes_are_refused(options, message, tmp_path):
    data = nifti(write(tmp_path, **options), test_dir=tmp_path)
    data._of_part = lambda part, items: items
    with pytest.raises(ValueError, match=message):
        data.setup("fit")


def test_damaged_files_are_refused(tmp_path):
    write(tmp_path)
    path = tmp_path / "imagesTr" / "ct_2.nii.gz"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"ct_2.nii.gz must be a readable NIfTI file"):
        nifti(tmp_path).setup("fit")
    path.unlink()
    with pytest.raises(ValueError, match="must name existing files"):
        nifti(tmp_path).prepare_data("fit")
    (tmp_path / "dataset.json").write_text("[]")
    with pytest.raises(ValueError, match="layout of the Medical Segmentation Decathlon"):
        nifti(tmp_path).prepare_data("fit")


def test_nibabel_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "nibabel", None)
    with pytest.raises(ValueError, match=r"pip install 'lightning-paf\[volumes\]'"):
        nifti(tmp_path).prepare_data("fit")
