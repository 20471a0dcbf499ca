"""Make a pool of synthetic images: samples of a Gaussian mixture for each class of the training images."""

import argparse
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lightning_paf.data.sources import ImageSet
    from lightning_paf.specs import DatasetSpec

PCA_ABOVE = 256  # a full covariance of more values than this is slow, and singular for most classes
PCA_DIMENSIONS = 128
REGULARISATION = 1e-3  # added to every variance of pixels in [0, 1]; pixels that never change have none of their own
SHEET_CLASSES, SHEET_REAL, SHEET_SYNTHETIC = 20, 5, 10


def main(argv: list[str]) -> int:
    """Write the pool and a contact sheet.

    Args:
        argv: Options, see `--help`.

    Returns:
        Exit status 0.

    Raises:
        ValueError: An option is out of range, the output exists, or the training images cannot be read.
    """
    options = _parse(argv)
    _check(options)
    from lightning_paf.data.sources import hold_out, read_dataset
    from lightning_paf.specs import dataset_spec

    spec = dataset_spec(options.dataset, options.num_classes)
    train = read_dataset(spec, options.root, download=True).train
    # What validates a model must not have shaped its training images. A larger split contains every smaller one.
    fitted, _ = hold_out(train, options.val_size or min(1024, len(train) // 2))
    pool = sample_mixture(fitted, spec, options.count, options.components, options.pca, options.seed)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    _save(pool, options.out)
    _save_contact_sheet(fitted, pool, spec.num_classes, options.out.with_suffix(".png"))
    print(
        f"{options.out}: {len(pool)} images {pool.images.shape[1:]} of {spec.num_classes} classes, from a mixture of "
        f"{options.components} Gaussian(s) for each class, fitted on {len(fitted)} training images of {spec.name}; "
        f"contact sheet: {options.out.with_suffix('.png')}"
    )
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("lightning-paf synthesize", description=__doc__)
    parser.add_argument("--dataset", default="digits", help="digits, cifar10, cifar100, svhn or npz")
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of the real images, as in --data.root")
    parser.add_argument("--num_classes", type=int, help="only for npz")
    parser.add_argument("--out", type=Path, required=True, help="npz file to write; a PNG is written beside it")
    parser.add_argument("--count", type=int, default=10_000, help="images in total, equally many of each class")
    parser.add_argument("--components", type=int, default=3, help="Gaussians for each class; they share a covariance")
    parser.add_argument(
        "--pca",
        type=int,
        help=f"principal components to work in; 0: the pixels themselves (default: {PCA_DIMENSIONS} for images of more "
        f"than {PCA_ABOVE} values, else 0)",
    )
    parser.add_argument(
        "--val_size",
        type=int,
        help="training images to leave out, at least the --data.val_size you train with (default: 1024, or half of the "
        "training images where that is fewer)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--force", action="store_true", help="write over an existing file")
    return parser.parse_args(argv)


def _check(options: argparse.Namespace) -> None:
    for name, least in (("count", 1), ("components", 1), ("pca", 0), ("val_size", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, but is {value}. Pass --{name} N with N >= {least}.")
    if options.out.suffix != ".npz":
        raise ValueError(f"The output is an npz file, but --out is {options.out}. Pass --out NAME.npz.")
    for path in (options.out, options.out.with_suffix(".png")):
        if path.exists() and not options.force:
            raise ValueError(f"{path} exists. Pass another --out, or --force to write over it.")


def sample_mixture(
    train: "ImageSet", spec: "DatasetSpec", count: int, components: int, pca: int | None, seed: int
) -> "ImageSet":
    """Fit one Gaussian mixture for each class and draw images from it, in random order.

    The Gaussians of a class share their covariance: with one each, a hundred images are enough to place a Gaussian on
    single images, which the pool would then repeat (the likelihood of held-out digits falls steeply).

    Args:
        train: What to fit.
        spec: Its classes.
        count: Images to draw; classes get equally many, the first ones one more where it does not divide.
        components: Gaussians for each class.
        pca: Number of principal components to work in; 0 for the pixels, None to choose by image size.
        seed: Of the fits, the draws and the order.

    Raises:
        ValueError: A class, or the whole set, has too few images.
    """
    import numpy as np
    from rich.progress import track
    from sklearn.decomposition import PCA
    from sklearn.mixture import GaussianMixture
    from sklearn.preprocessing import FunctionTransformer

    from lightning_paf.data.sources import ImageSet

    flat = train.images.reshape(len(train), -1).astype(np.float32) / 255
    pca = PCA_DIMENSIONS * (flat.shape[1] > PCA_ABOVE) if pca is None else pca
    _check_enough(train, spec, count, components, pca)
    rng = np.random.default_rng(seed)
    projection = PCA(pca, random_state=seed) if pca else FunctionTransformer()  # which is the identity
    codes = projection.fit_transform(flat).astype(np.float64)
    labels = np.arange(count) % spec.num_classes
    images = np.empty((count, *train.images.shape[1:]), np.uint8)
    for label in track(range(spec.num_classes), "Fitting and drawing"):
        mixture = GaussianMixture(components, covariance_type="tied", reg_covar=REGULARISATION)
        mixture.set_params(random_state=int(rng.integers(2**31))).fit(codes[train.labels == label])
        wanted = labels == label
        drawn = projection.inverse_transform(mixture.sample(int(wanted.sum()))[0])
        images[wanted] = np.round(255 * drawn.clip(0, 1)).reshape(-1, *images.shape[1:])
    return ImageSet(images, labels).take(rng.permutation(count))


def _check_enough(train: "ImageSet", spec: "DatasetSpec", count: int, components: int, pca: int) -> None:
    import numpy as np

    if count < spec.num_classes:
        raise ValueError(f"A pool of {count} images cannot show {spec.num_classes} classes. Pass a larger --count.")
    fewest, least = int(np.bincount(train.labels, minlength=spec.num_classes).min()), max(2, components)
    if fewest < least:
        raise ValueError(
            f"{components} component(s) need {least} training images of each class, but one class has {fewest}. "
            "Pass a smaller --components or --val_size."
        )
    most = min(len(train), train.images[0].size)
    if pca > most:
        raise ValueError(f"There are only {most} principal components, but pca is {pca}. Pass --pca {most} or fewer.")


def _save(pool: "ImageSet", path: Path) -> None:
    """Write a npz file in one step: a crash leaves the old one, or none."""
    import numpy as np

    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, image=pool.images, label=pool.labels)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _save_contact_sheet(train: "ImageSet", pool: "ImageSet", num_classes: int, path: Path) -> None:
    """Write a PNG with one row for each class: training images, a gap, synthetic images."""
    import numpy as np
    from matplotlib.image import imsave

    def row(images: "ImageSet", label: int, length: int) -> "NDArray[np.uint8]":
        tiles = np.full((length, *images.images.shape[1:]), 255, np.uint8)
        found = images.images[np.flatnonzero(images.labels == label)[:length]]
        tiles[: len(found)] = found
        return np.pad(np.concatenate(tiles, axis=1), ((1, 1), (1, 1), (0, 0)), constant_values=255)

    rows = [
        np.concatenate([row(train, label, SHEET_REAL), row(pool, label, SHEET_SYNTHETIC)], axis=1)
        for label in range(min(num_classes, SHEET_CLASSES))
    ]
    sheet = np.concatenate(rows)
    zoom = max(1, 960 // sheet.shape[1])
    sheet = sheet.repeat(zoom, axis=0).repeat(zoom, axis=1)
    imsave(path, np.broadcast_to(sheet, (*sheet.shape[:2], 3)))
