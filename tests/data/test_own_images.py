"""Image files of the user, in one folder per class."""

import numpy as np
import pytest
import torch
from helpers.image_folders import CLASSES, write_image_folder
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from lightning_paf.data import RobustDataModule
from lightning_paf.data.own import described
from lightning_paf.data.readers.class_folders import FolderPictures


def data_of(root, **changes) -> RobustDataModule:
    given = {"val_size": 4, "batch_size": 6, "num_workers": 0, "real_fraction": 1.0}
    return RobustDataModule("folder", root, **{**given, **changes})


def prepared(root, stage="fit", **changes) -> RobustDataModule:
    data = data_of(root, **changes)
    data.prepare_data(stage)
    data.setup(stage)
    return data


def evaluated(data: RobustDataModule) -> tuple[np.ndarray, np.ndarray]:
    batches = list(data.test_dataloader())
    return tuple(np.concatenate([batch[part].numpy() for batch in batches]) for part in (0, 1))


@pytest.fixture
def root(tmp_path):
    return write_image_folder(tmp_path / "images")


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1), ("P", 3), ("RGBA", 3), ("CMYK", 3)])
def test_classes_channels_and_size_are_those_of_the_files(mode, channels, tmp_path):
    root = tmp_path / "images"
    for part in ("train", "test"):
        for name in CLASSES:
            (root / part / name).mkdir(parents=True)
            Image.new(mode, (64, 48)).save(root / part / name / ("a.tif" if mode == "CMYK" else "a.png"))
    spec = described("folder", root=root)
    assert (spec.class_names, spec.num_classes, spec.shape) == (CLASSES, 3, (channels, 48, 64))
    assert described("folder", size=20, root=root).shape == (channels, 20, 20)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("size", "resize"), [(None, None), (32, None), (32, 40), (60, None)])
def test_images_are_those_of_torchvision(size, resize, stream, root):
    """Resize and centre crop agree with torchvision to one grey level, in the array and while streaming."""
    images, labels = evaluated(prepared(root, "test", size=size, resize=resize, stream=stream))
    usual = v2.Compose([v2.Resize(resize or size), v2.CenterCrop(size)] if size else [v2.Identity()])
    expected = [(np.asarray(usual(image)), label) for image, label in ImageFolder(str(root / "test"))]
    order = np.random.default_rng(0).permutation(len(expected))
    np.testing.assert_array_equal(labels, [expected[row][1] for row in order])
    np.testing.assert_allclose(images.astype(int), [expected[row][0].astype(int) for row in order], atol=1)


def test_images_of_the_wanted_size_are_not_changed(root):
    unchanged = evaluated(prepared(root, "test"))[0]
    assert unchanged.shape == (12, 48, 64, 3)
    np.testing.assert_array_equal(unchanged, evaluated(prepared(root, "test", stream=True))[0])


def test_a_small_set_is_converted_once_to_a_memory_mapped_array(root):
    train = prepared(root, size=32).train_dataloader().dataset.real.images
    assert isinstance(train.base, np.memmap)
    assert (train.shape, train.dtype) == ((20, 32, 32, 3), np.uint8)
    folders = sorted(path.name.split(".")[:2] for path in root.iterdir() if path.is_dir() and "." in path.name)
    assert folders == [["test", "32x32x3"], ["train", "32x32x3"]]
    written = {path: path.stat().st_mtime_ns for path in root.glob("*.*/*.npy")}
    prepared(root, size=32)
    assert {path: path.stat().st_mtime_ns for path in root.glob("*.*/*.npy")} == written


def test_a_changed_file_is_converted_again(root):
    before = evaluated(prepared(root, "test"))[0]
    Image.new("RGB", (64, 48), (250, 0, 0)).save(root / "test" / "cat" / "0.png")
    after = evaluated(prepared(root, "test"))[0]
    assert (before != after).any((1, 2, 3)).sum() == 1


def test_training_images_are_held_out_in_a_random_order_unless_there_is_a_val(root):
    data = prepared(root, val_size=12)
    assert len(set(data._real["val"].labels.tolist())) == 3
    for name in CLASSES:
        (root / "val" / name).mkdir(parents=True)
        Image.new("RGB", (64, 48)).save(root / "val" / name / "a.png")
    data = prepared(root, val_size=12)
    assert (len(data._real["train"]), len(data._real["val"])) == (24, 3)


def test_random_crops_differ_between_epochs_and_not_between_runs(root):
    def batches(epoch):
        loader = prepared(root, size=16, random_crop=0.2).train_dataloader()
        loader.sampler.set_epoch(epoch)
        return torch.cat([batch.images for batch in loader])

    first = batches(1)
    assert first.shape == (24, 16, 16, 3)
    assert torch.equal(first, batches(1))
    loader = prepared(root, size=16, random_crop=0.2).train_dataloader()
    same = [loader.dataset.__getitems__([5 + epoch * len(loader.dataset)]).images for epoch in (0, 1)]
    assert not torch.equal(*same)


def test_workers_decode_the_images_of_the_main_process(root):
    alone, helped = (
        torch.cat(
            [batch.images for batch in prepared(root, size=16, random_crop=0.5, num_workers=n).train_dataloader()]
        )
        for n in (0, 2)
    )
    assert torch.equal(alone, helped)


def test_a_class_can_have_subfolders_and_other_files(root):
    inner = root / "train" / "cat" / "more"
    inner.mkdir()
    Image.new("RGB", (64, 48)).save(inner / "a.webp")
    (inner / "notes.txt").write_text("no image")
    (inner / "._a.png").write_text("no image")
    assert len(FolderPictures(root, "train")) == 25
