"""Patches and whole photographs, and folders that are refused."""

import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_paf.data import Dihedral, PhotographDataModule
from lightning_paf.data.readers.photographs import Patches, read_photograph


def write(folder, sizes, mode="RGB"):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate(sizes):
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / f"{number}.png")
    return folder


def module(folder, **options):
    options = {"channels": 1, "patch": 12, "stride": 4, "batch_size": 4} | options
    return PhotographDataModule(folder, test_dir=folder, **options)


def test_patches_are_parts_of_the_photographs():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, size, np.uint8) for size in ((9, 7, 3), (5, 5, 3))]
    patches = Patches(images, patch=5, stride=2)
    assert patches.shape == (3 * 2 + 1, 5, 5, 3)
    expected = [images[0][r : r + 5, c : c + 5] for r in (0, 2, 4) for c in (0, 2)] + [images[1]]
    order = np.array([6, 0, 5, 1, 2, 3, 4])
    assert (patches[order] == np.stack([expected[index] for index in order])).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_batches(tmp_path, channels):
    data = module(write(tmp_path, [(20, 16), (12, 30), (14, 14)]), channels=channels)
    data.setup("fit")
    data.setup("test")
    assert len(data._train_set) == (1 * 5) + (1 * 1)
    assert data.test_dataloader().dataset.names == ["0.png", "1.png", "2.png"]
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.test_dataloader()]
    assert [batch[0][0].shape for batch in batches] == [(channels, 20, 16), (channels, 12, 30), (channels, 14, 14)]
    assert [batch[1].tolist() for batch in batches] == [[0], [1], [2]]


def test_training_batches_are_floats(tmp_path):
    data = module(write(tmp_path, [(20, 16), (12, 30), (14, 14)]))
    data.setup("fit")
    found = [data.on_after_batch_transfer(batch, 0)[0] for batch in data.train_dataloader()]
    assert [x.shape for x in found] == [(4, 1, 12, 12)] * 2
    assert all(x.min() >= 0 and x.max() <= 1 and x.dtype == torch.float32 for x in found)
    assert len(data.val_dataloader()) == 1, "a tenth of the photographs, at least one"


def test_the_middle_of_large_photographs_is_kept(tmp_path):
    path = write(tmp_path, [(20, 13)]) / "0.png"
    whole, part = read_photograph(path, 3, 12), read_photograph(path, 3, 12, crop=14)
    assert (part == whole[3:17]).all()


def test_dihedral_augmentation_has_eight_results():
    torch.manual_seed(0)
    image = torch.arange(9, dtype=torch.uint8).reshape(1, 1, 3, 3)
    found = {one.contiguous().numpy().tobytes() for one in Dihedral()(image.repeat(400, 1, 1, 1))}
    turned = [image.rot90(k, (2, 3)) for k in range(4)]
    expected = {one.contiguous().numpy().tobytes() for one in (*turned, *(x.flip(-1) for x in turned))}
    assert len(expected) == 8
    assert found == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 2}, "data.channels must be 1 or 3, got 2"),
        ({"patch": 8}, "data.patch must be at least 11, got 8"),
        ({"stride": 0}, "stride must be from 1"),
        ({"crop": 11}, "data.crop must be at least data.patch=12, got 11"),
        ({"batch_size": 0}, "batch_size must be from 1"),
        ({"epoch": 0}, "epoch must be from 1"),
        ({"seed": -1}, "data.seed must be"),
    ],
)
def test_bad_arguments_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        module(tmp_path, **options)


def test_folders_without_usable_photographs_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"train_dir must be a folder of photographs, got .*missing"):
        module(tmp_path / "missing").prepare_data("fit")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"--data.test_dir must hold photographs .* got none"):
        module(tmp_path / "empty").prepare_data("test")
    with pytest.raises(ValueError, match="at least 2 photographs, one of them for validation, got 1"):
        module(write(tmp_path / "one", [(20, 20)])).prepare_data("fit")
    with pytest.raises(ValueError, match=r"1.png must have at least 12 x 12 pixels, got 11 x 30"):
        module(write(tmp_path / "small", [(20, 20), (11, 30)])).setup("fit")
    (write(tmp_path / "bad", [(20, 20), (20, 20)]) / "1.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"1.png must be a readable image, got"):
        module(tmp_path / "bad").setup("fit")
    Image.fromarray(np.zeros((20, 20), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="must have 8 bits per channel, got the mode I;16"):
        read_photograph(tmp_path / "deep.png", 1, 12)


def test_photographs_of_an_absent_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"scikit-image must be installed .* got neither. Pass --data.test_dir FOLDER"):
        PhotographDataModule().prepare_data("test")


@pytest.mark.skipif(importlib.util.find_spec("skimage") is None, reason="needs scikit-image")
@pytest.mark.parametrize("stage", ["fit", "test"])
def test_packaged_photographs_are_read(stage):
    data = PhotographDataModule(channels=3)
    data.prepare_data(stage)
    data.setup(stage)
    assert all(len(dataset) > 1 for dataset in data._evaluated.values())
