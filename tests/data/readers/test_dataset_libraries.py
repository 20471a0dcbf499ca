"""Datasets of torchvision and of Hugging Face, and files of MedMNIST."""

import re

import numpy as np
import pytest
from helpers.data_files import write_fashion_mnist, write_hub_dataset
from helpers.image_folders import CLASSES, write_image_folder
from PIL import Image

from lightning_paf.data import RobustDataModule
from lightning_paf.data.own import described

FASHION = "torchvision.datasets.FashionMNIST"


def test_images(dataset, root, **options) -> tuple[np.ndarray, np.ndarray]:
    data = RobustDataModule(dataset, root, real_fraction=1.0, val_size=2, batch_size=4, num_workers=0, **options)
    data.prepare_data("fit")
    data.setup("fit")
    assert data.spec.num_classes == len(np.unique(data._real["train"].labels))
    data.setup("test")
    batches = list(data.test_dataloader())
    return tuple(np.concatenate([getattr(batch, part).numpy() for batch in batches]) for part in ("images", "labels"))


test_images.__test__ = False


def test_a_dataset_of_torchvision_is_read_by_its_class_path(tmp_path):
    expected = write_fashion_mnist(tmp_path)
    spec = described(FASHION, root=tmp_path)
    assert (spec.num_classes, spec.shape, spec.class_names[9]) == (10, (1, 28, 28), "Ankle boot")
    images, labels = test_images(FASHION, tmp_path)
    np.testing.assert_array_equal(images[np.argsort(labels), ..., 0], expected)
    assert test_images(FASHION, tmp_path, size=16, channels=3, convert_channels=True)[0].shape == (10, 16, 16, 3)


def test_without_test_images_the_validation_images_are_used(tmp_path):
    """Imagenette has the splits train and val, and tuples as names."""
    from torchvision.datasets import Imagenette

    for part in ("train", "val"):
        for name in Imagenette._WNID_TO_CLASS:
            folder = tmp_path / "imagenette2" / part / name
            folder.mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (20, 30)).save(folder / f"{number}.JPEG")
    path = "torchvision.datasets.Imagenette"
    assert described(path, root=tmp_path).class_names[0] == "tench"
    assert test_images(path, tmp_path)[0].shape == (20, 30, 20, 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("FashionMNST", r"got torchvision\.datasets\.FashionMNST\. Similar: torchvision\.datasets\.FashionMNIST\b"),
        ("folder", "must be a dataset of torchvision"),
        ("EuroSAT", "EuroSAT must have a part for train, got: one part. Save its images as train/CLASS"),
        ("EMNIST", "must have a part for train, got: Unknown value 'train-standard' for argument split"),
        ("GTSRB", "must hold a complete copy of the dataset, and none could be downloaded"),
    ],
)
def test_other_datasets_of_torchvision_are_refused(name, message, tmp_path, monkeypatch):
    from torchvision.datasets import gtsrb

    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(gtsrb, "download_and_extract_archive", no_network)
    with pytest.raises(ValueError, match=message):
        described("torchvision.datasets." + name, root=tmp_path)


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 3)])
def test_one_file_of_medmnist_is_read(shape, tmp_path):
    rng = np.random.default_rng(0)
    parts = {"train": 12, "val": 6, "test": 9}
    images = {part: rng.integers(0, 256, (count, *shape)).astype(np.uint8) for part, count in parts.items()}
    labels = {part: (np.arange(count, dtype=np.uint8) % 3)[:, None] for part, count in parts.items()}
    path = tmp_path / "medmnist.npz"
    np.savez_compressed(
        path,
        **{f"{part}_images": found for part, found in images.items()},
        **{f"{part}_labels": found for part, found in labels.items()},
    )
    found = test_images("npz", path, num_classes=3)
    np.testing.assert_array_equal(found[0], images["test"].reshape(9, 28, 28, -1))
    np.testing.assert_array_equal(found[1], labels["test"][:, 0])
    data = RobustDataModule("npz", path, num_classes=3, real_fraction=1.0, batch_size=4)
    assert len(data._read("validate", download=False)["val"]) == 6


@pytest.fixture
def saved(tmp_path):
    """A folder of `save_to_disk` with the images of a folder of image files, and that folder."""
    pytest.importorskip("datasets")
    files = write_image_folder(tmp_path / "files")
    write_hub_dataset(tmp_path / "saved", files)
    return tmp_path / "saved", files


@pytest.mark.parametrize("index", [0, 1])
def test_a_dataset_of_hugging_face_is_read_from_a_folder(index, saved):
    """A folder of `save_to_disk`, and a folder of image files."""
    root = saved[index]
    spec = described("huggingface", root=root)
    assert (spec.class_names, spec.shape) == (CLASSES, (3, 48, 64))
    for found, expected in zip(test_images("huggingface", root), test_images("folder", saved[1]), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_bad_datasets_of_hugging_face_are_refused(saved, tmp_path, monkeypatch):
    import datasets

    with pytest.raises(ValueError, match="all classes must be those of the training"):
        described("huggingface", root=saved[0], classes=("cat", "dog"))
    table = datasets.Dataset.from_dict({"text": ["a"]})
    datasets.DatasetDict({"train": table}).save_to_disk(tmp_path / "text")
    with pytest.raises(ValueError, match="must have a column of images and one of ClassLabel, got text"):
        described("huggingface", root=tmp_path / "text")
    monkeypatch.setattr(datasets, "load_dataset", lambda name: 1 / 0)
    message = "data.root must be a folder of DatasetDict.save_to_disk or a name on the hub, got owner/name: division"
    with pytest.raises(ValueError, match=message):
        described("huggingface", root="owner/name")


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ValueError, match=re.escape("Run pip install 'lightning-paf[huggingface]'.")):
        described("huggingface", root=tmp_path)
