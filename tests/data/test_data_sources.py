import pickle
import tracemalloc
from urllib.error import URLError

import numpy as np
import pytest
from helpers.data_files import arrays, write_npz

from lightning_paf.data.sources import ImageSet, hold_out, read_dataset, read_part
from lightning_paf.specs import dataset_spec

DIGITS = dataset_spec("digits")
CIFAR10 = dataset_spec("cifar10")
SVHN = dataset_spec("svhn")
NPZ = dataset_spec("npz", 3)


def write_cifar10(root, per_file=10):
    """CIFAR-10's python layout: rows of 3 * 32 * 32 bytes, channel after channel."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    contents = {}
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        contents[name] = {
            "data": rng.integers(0, 256, (per_file, 3072)).astype(np.uint8),
            "labels": list(range(10)) * (per_file // 10),
        }
        (folder / name).write_bytes(pickle.dumps(contents[name]))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    return contents


@pytest.fixture
def any_checksum(monkeypatch):
    """Let torchvision accept files other than the published ones."""
    from torchvision.datasets import CIFAR10

    for part in ("train_list", "test_list"):
        monkeypatch.setattr(CIFAR10, part, [[name, None] for name, _ in getattr(CIFAR10, part)])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": None})


@pytest.mark.parametrize("download", [True, False])
def test_a_cifar10_folder_is_read_in_place(tmp_path, any_checksum, download):
    contents = write_cifar10(tmp_path)
    data = read_dataset(CIFAR10, tmp_path, download)
    assert data.train.images.shape == (50, 32, 32, 3)
    assert data.test.images.dtype == np.uint8
    row = contents["data_batch_2"]["data"][3]
    image = data.train.images[13]
    assert image[5, 7, 2] == row[2 * 1024 + 5 * 32 + 7], "(row, column, channel)"
    np.testing.assert_array_equal(data.test.labels, np.arange(10))
    assert data.train.labels.dtype == np.int64


def test_a_missing_or_altered_cifar10_is_refused(tmp_path, monkeypatch):
    message = r"data\.root=.* must hold a complete copy of the dataset.*Unpack its archive there"
    with pytest.raises(ValueError, match=message):
        read_dataset(CIFAR10, tmp_path, download=False)
    write_cifar10(tmp_path)
    with pytest.raises(ValueError, match=message):  # other checksums than the published ones
        read_dataset(CIFAR10, tmp_path, download=False)

    def offline(self):
        raise URLError("no route")

    monkeypatch.setattr("torchvision.datasets.CIFAR10.download", offline)
    with pytest.raises(ValueError, match=r"none could be downloaded \(<urlopen error no route>\)"):
        read_dataset(CIFAR10, tmp_path, download=True)


def test_svhn_becomes_channels_last(tmp_path, monkeypatch):
    from scipy.io import savemat
    from torchvision.datasets import SVHN as TorchSVHN

    images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 20)).astype(np.uint8)
    for split in ("train", "test"):
        savemat(tmp_path / f"{split}_32x32.mat", {"X": images, "y": np.arange(1, 21)[:, None] % 10 + 1})
    split_list = {name: [*entry[:2], None] for name, entry in TorchSVHN.split_list.items()}
    monkeypatch.setattr(TorchSVHN, "split_list", split_list)
    data = read_dataset(SVHN, tmp_path, download=False)
    np.testing.assert_array_equal(data.train.images[4], images[:, :, :, 4])
    assert set(data.train.labels) == set(range(10))


def test_digits_need_no_folder_and_have_the_statistics_of_their_spec(tmp_path):
    data = read_dataset(DIGITS, tmp_path / "nowhere", download=True)
    assert data.train.images.shape == (1437, 8, 8, 1)
    assert data.test.images.shape == (360, 8, 8, 1)
    everything = np.concatenate([data.train.images, data.test.images]) / 255
    assert everything.max() == 1
    assert everything.mean() == pytest.approx(DIGITS.mean[0], abs=1e-3)
    assert everything.std() == pytest.approx(DIGITS.std[0], abs=1e-3)
    assert np.bincount(data.test.labels).min() >= 34
    again = read_dataset(DIGITS, tmp_path, download=False)
    np.testing.assert_array_equal(again.test.images, data.test.images)
    assert not {i.tobytes() for i in data.train.images} & {i.tobytes() for i in data.test.images}


def write_pair(root, **test_options):
    write_npz(root / "train.npz", n=30)
    write_npz(root / "test.npz", **{"n": 9, "seed": 1, **test_options})
    return root


def test_npz_pair_is_read_with_shuffled_training_and_ordered_test_images(tmp_path):
    write_pair(tmp_path)
    image, label = arrays(n=30)
    order = np.argsort(label, kind="stable")
    np.savez(tmp_path / "train.npz", image=image[order], label=label[order])
    data = read_dataset(NPZ, tmp_path, download=True)
    assert set(data.train.labels[:10]) == {0, 1, 2}, "a file sorted by class must not give a one-class validation set"
    pairs = {(i.tobytes(), int(y)) for i, y in zip(data.train.images, data.train.labels, strict=True)}
    assert pairs == {(i.tobytes(), int(y)) for i, y in zip(image, label, strict=True)}
    np.testing.assert_array_equal(data.test.images, arrays(n=9, seed=1)[0])


def test_training_images_are_held_in_memory_once_and_shuffled(tmp_path):
    image, label = arrays(n=1000, size=64)
    np.savez(tmp_path / "train.npz", image=image, label=label)
    tracemalloc.start()
    found = read_part(NPZ, tmp_path, "train", download=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.8 * image.nbytes, "a chunk has a third of the size here"
    order = np.random.default_rng(0).permutation(1000)
    np.testing.assert_array_equal(found.images, image[order])
    np.testing.assert_array_equal(found.labels, label[order])


def test_bad_npz_pairs_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"train\.npz: there is no such file"):
        read_dataset(NPZ, tmp_path, download=True)
    with pytest.raises(ValueError, match=r"test\.npz: images must be uint8 .*\(N, H, W, 3\).* Pass --data\.channels 1"):
        read_dataset(NPZ, write_pair(tmp_path / "grey", channels=1), download=True)
    with pytest.raises(ValueError, match=r"test set: images must have the size of the real ones"):
        read_dataset(NPZ, write_pair(tmp_path / "size", size=5), download=True)
    with pytest.raises(ValueError, match=r"test set: labels must be 0 to 2, got 0 to 4"):
        read_dataset(NPZ, write_pair(tmp_path / "labels", num_classes=5), download=True)
    with pytest.raises(ValueError, match=r"training set: all 12 classes must occur, got .* 3, 4, .*, 11\. Add"):
        read_dataset(dataset_spec("npz", 12), write_pair(tmp_path / "classes"), download=True)
    root = write_pair(tmp_path / "float")
    np.savez(root / "train.npz", image=arrays(n=30)[0], label=np.zeros(30))
    with pytest.raises(ValueError, match=r"train\.npz: labels must be integers, got float64"):
        read_dataset(NPZ, root, download=True)


def test_grey_images_need_no_channel_axis(tmp_path):
    root = write_npz(write_pair(tmp_path, channels=1) / "train.npz", n=30, channels=1).parent
    expected = read_dataset(dataset_spec("npz", 3, 1), root, download=True)
    for part in ("train", "test"):
        with np.load(root / f"{part}.npz") as content:
            written = {"image": content["image"][..., 0], "label": content["label"]}
        np.savez(root / f"{part}.npz", **written)
    found = read_dataset(dataset_spec("npz", 3, 1), root, download=True)
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_array_equal(got.images, want.images)
        np.testing.assert_array_equal(got.labels, want.labels)
    with pytest.raises(ValueError, match=r"got uint8 of shape \(30, 4, 4, 1\)\. Pass --data\.channels 1"):
        read_dataset(NPZ, root, download=True)


def test_only_predict_takes_images_without_labels(tmp_path):
    root = write_pair(tmp_path)
    np.savez(root / "test.npz", image=arrays(n=9)[0])
    with pytest.raises(ValueError, match=r"test set: images must have labels except in `predict`, got none\. Store"):
        read_dataset(NPZ, root, download=True)
    found = read_part(NPZ, root, "test", download=True, labelled=False)
    assert found.labels.tolist() == [-1] * 9
    write_pair(root, num_classes=5)
    with pytest.raises(ValueError, match="test set: labels must be 0 to 2, got 0 to 4"):
        read_part(NPZ, root, "test", download=True, labelled=False)


def test_channels_must_be_those_of_a_known_dataset():
    with pytest.raises(ValueError, match=r"data\.channels must be 3 for data\.dataset=cifar10, got 1"):
        dataset_spec("cifar10", None, 1)
    with pytest.raises(ValueError, match=r"data\.channels must be at least 1, got 0"):
        dataset_spec("npz", 3, 0)


def test_validation_images_are_the_first_ones():
    train = ImageSet(*arrays(n=30))
    rest, val = hold_out(train, 10)
    np.testing.assert_array_equal(val.images, train.images[:10])
    np.testing.assert_array_equal(rest.labels, train.labels[10:])
    assert len(rest) + len(val) == 30


@pytest.mark.parametrize("size", [0, -1, 16])
def test_validation_takes_at_most_half(size):
    with pytest.raises(ValueError, match=rf"val_size must be 1 to 15, .* got {size}\. Pass --data\.val_size 3"):
        hold_out(ImageSet(*arrays(n=30)), size)
