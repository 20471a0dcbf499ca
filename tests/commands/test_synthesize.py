"""`synthesize`: pools, contact sheets and refused options."""

import numpy as np
import pytest

from lightning_paf.commands import synthesize
from lightning_paf.data import RobustDataModule
from lightning_paf.data.sources import ImageSet, hold_out, read_dataset
from lightning_paf.specs import dataset_spec
from lightning_paf.synthesis.mixture import REGULARISATION, sample_mixture

DIGITS = dataset_spec("digits")


@pytest.fixture(scope="module")
def train():
    return hold_out(read_dataset(DIGITS, None, download=False).train, 200)[0]


def run(out, *options):
    return synthesize.main(["--dataset", "digits", "--count", "105", "--components", "1", "--out", str(out), *options])


def test_training_reads_the_pool_and_a_contact_sheet_is_next_to_it(tmp_path, capsys):
    from matplotlib.image import imread

    out = tmp_path / "new" / "pool.npz"
    assert run(out, "--val_size", "200") == 0
    summary = capsys.readouterr().out
    assert "105 images (8, 8, 1) of 10 classes" in summary
    assert "fitted on 1237 training images" in summary
    sheet = imread(out.with_suffix(".png"))
    assert sheet.shape[0] % (10 * (8 + 2)) == 0
    assert sheet.std() > 0.1
    assert {file.name for file in out.parent.iterdir()} == {"pool.npz", "pool.png"}
    data = RobustDataModule("digits", synthetic=out, real_fraction=0.5, batch_size=64, val_size=200, num_workers=0)
    data.prepare_data()
    data.setup("fit")
    assert next(iter(data.train_dataloader())).synthetic.sum() == 32


def test_equal_seeds_give_equal_pools(tmp_path):
    def images(name, seed):
        run(tmp_path / name, "--seed", seed)
        return np.load(tmp_path / name)["image"]

    first = images("a.npz", "1")
    np.testing.assert_array_equal(first, images("b.npz", "1"))
    assert (first != images("c.npz", "2")).any()


def test_classes_are_balanced_and_in_random_order(train):
    pool = sample_mixture(train, DIGITS, 105, 1, 0, seed=0)
    assert np.bincount(pool.labels).tolist() == [11] * 5 + [10] * 5
    assert (np.diff(pool.labels) < 0).sum() > 20


@pytest.mark.parametrize(("components", "pca"), [(1, 0), (3, 0), (2, 20)])
def test_samples_look_like_their_class(train, components, pca):
    pool = sample_mixture(train, DIGITS, 1000, components, pca, seed=0)
    means = np.stack([train.images[train.labels == c].mean(0) for c in range(10)])
    sampled = np.stack([pool.images[pool.labels == c].mean(0) for c in range(10)])
    assert np.abs(means - sampled).mean() < 10  # of 255
    nearest = np.abs(pool.images[:, None].astype(float) - means).mean((2, 3, 4)).argmin(1)
    assert (nearest == pool.labels).mean() > 0.8


def test_one_gaussian_has_the_moments_of_its_class():
    rng = np.random.default_rng(0)
    labels = np.arange(600) % 2
    brightness = np.where(labels, 150, 100) + rng.normal(0, 15, 600)  # common to all pixels of an image
    images = brightness[:, None, None, None] + rng.normal(0, 10, (600, 3, 3, 1))
    train = ImageSet(images.round().astype(np.uint8), labels)
    pool = sample_mixture(train, dataset_spec("npz", 2), 20_000, 1, 0, seed=0)
    for label in (0, 1):
        real, drawn = (part.images[part.labels == label].reshape(-1, 9) / 255 for part in (train, pool))
        np.testing.assert_allclose(drawn.mean(0), real.mean(0), atol=0.003)
        extra = REGULARISATION * np.eye(9)
        np.testing.assert_allclose(np.cov(drawn.T), np.cov(real.T) + extra, atol=3e-4)


def test_validation_and_test_images_have_no_influence(tmp_path, monkeypatch):
    run(tmp_path / "a.npz", "--val_size", "200")
    data = read_dataset(DIGITS, None, download=False)
    data.test.images[:] = 0
    data.train.images[:200] = 0
    monkeypatch.setattr("lightning_paf.data.sources.read_dataset", lambda *args, **kwargs: data)
    run(tmp_path / "b.npz", "--val_size", "200")
    np.testing.assert_array_equal(np.load(tmp_path / "a.npz")["image"], np.load(tmp_path / "b.npz")["image"])


@pytest.mark.parametrize("existing", ["pool.npz", "pool.png"])
def test_nothing_is_overwritten_without_force(tmp_path, existing):
    (tmp_path / existing).write_text("mine")
    with pytest.raises(ValueError, match=rf"{existing} exists\. Pass another --out, or --force"):
        run(tmp_path / "pool.npz")
    assert (tmp_path / existing).read_text() == "mine"
    assert run(tmp_path / "pool.npz", "--force") == 0
    assert len(np.load(tmp_path / "pool.npz")["label"]) == 105


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--count", "0"], "--count: must be at least 1, got 0"),
        (["--components", "0"], "--components: must be at least 1"),
        (["--pca", "-1"], "--pca: must be at least 0"),
        (["--val_size", "0"], "--val_size: must be at least 1"),
        (["--count", "9"], r"--count must be at least 10, one for each class, got 9\. Pass --count 10\."),
        (["--components", "500"], r"must have 500 training images for --components 500, got \d+"),
        (["--pca", "65"], r"pca must be at most 64, got 65\. Pass --pca 64"),
        (["--dataset", "digitz"], "digitz"),
        (["--dataset", "npz"], "num_classes"),
        (["--val_size", "719"], "val_size must be 1 to 718"),
        (["--out", "pool.zip"], r"Pass --out NAME\.npz"),
    ],
)
def test_invalid_options_are_refused_and_nothing_is_written(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "pool.npz", *options)
    assert not list(tmp_path.iterdir())
