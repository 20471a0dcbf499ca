"""Generate synthetic images from a Gaussian mixture for each class."""

import argparse
import io
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_paf.utils.arguments import command_parser, number, positive

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lightning_paf.data.sources import ImageSet
    from lightning_paf.specs import DatasetSpec

PCA_ABOVE = 256  # a full covariance of more values than this is slow, and singular for most classes
PCA_DIMENSIONS = 128
REGULARISATION = 1e-3  # added to every variance of pixels in [0, 1]; constant pixels have none
SHEET_CLASSES, SHEET_REAL, SHEET_SYNTHETIC = 20, 5, 10


def main(argv: list[str]) -> int:
    """Write the pool and a contact sheet."""
    options = _parse(argv)
    _check(options)
    import numpy as np

    from lightning_paf.data.sources import hold_out, read_dataset
    from lightning_paf.specs import dataset_spec
    from lightning_paf.utils.files import write_whole

    spec = dataset_spec(options.dataset, options.num_classes)
    train = read_dataset(spec, options.root, download=True).train
    # Validation images must not influence the pool. A larger validation split contains every smaller one.
    fitted, _ = hold_out(train, options.val_size or min(1024, len(train) // 2))
    pool = sample_mixture(fitted, spec, options.count, options.components, options.pca, options.seed)
    content, sheet = io.BytesIO(), options.out.with_suffix(".png")
    np.savez(content, image=pool.images, label=pool.labels)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(options.out, content.getvalue())
    _save_contact_sheet(fitted, pool, spec.num_classes, sheet)
    print(
        f"{options.out}: {len(pool)} images {pool.images.shape[1:]} of {spec.num_classes} classes, from a mixture of "
        f"{options.components} Gaussians per class, fitted on {len(fitted)} training images of {spec.name}; "
        f"contact sheet: {sheet}"
    )
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = command_parser("synthesize", __doc__)
    add = parser.add_argument
    add("--dataset", default="digits", help="digits, cifar10, cifar100, svhn or npz")
    add("--root", type=Path, default=Path("data"), help="folder of the real images, as in --data.root")
    add("--num_classes", type=int, help="only for npz")
    add("--out", type=Path, required=True, help="npz file to write; a PNG is written next to it")
    add("--count", type=positive, default=10_000, help="images in total, equally many of each class")
    add("--components", type=positive, default=3, help="Gaussians for each class; they share a covariance")
    add(
        "--pca",
        type=number(int, least=0),
        help=f"principal components of the images to fit; 0: fit the pixels (default: {PCA_DIMENSIONS} for images of "
        f"more than {PCA_ABOVE} values, else 0)",
    )
    add(
        "--val_size",
        type=positive,
        help="training images to leave out, at least the --data.val_size of `fit` (default: 1024, or half of the "
        "training images if that is fewer)",
    )
    add("--seed", type=int, default=0, help="seed of the fits, the draws and the order")
    add("--force", action="store_true", help="overwrite an existing file")
    return parser.parse_args(argv)


def _check(options: argparse.Namespace) -> None:
    if options.out.suffix != ".npz":
        raise ValueError(f"--out must be an npz file, got {options.out}. Pass --out NAME.npz.")
    for path in (options.out, options.out.with_suffix(".png")):
        if path.exists() and not options.force:
            raise ValueError(f"{path} exists. Pass another --out, or --force to overwrite it.")


def sample_mixture(
    train: "ImageSet", spec: "DatasetSpec", count: int, components: int, pca: int | None, seed: int
) -> "ImageSet":
    """Fit one Gaussian mixture for each class and draw images, in random order.

    The Gaussians of a class share their covariance. With separate ones, some Gaussians collapse onto single images,
    which the pool would repeat (the likelihood of held-out digits falls steeply).

    Args:
        train: Images to fit.
        spec: Number of classes.
        count: Images to draw, equally many of each class; the first classes get one more if it does not divide.
        components: Gaussians for each class.
        pca: Number of principal components to fit; 0 for the pixels, None to choose by image size.
        seed: Seed of the fits, the draws and the order.

    Raises:
        ValueError: Too few images, in total or of a class; `pca` above the number of principal components.
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
    projection = PCA(pca, random_state=seed) if pca else FunctionTransformer()  # the identity
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
        least = spec.num_classes
        raise ValueError(f"--count must be at least {least}, one for each class, got {count}. Pass --count {least}.")
    fewest, least = int(np.bincount(train.labels, minlength=spec.num_classes).min()), max(2, components)
    if fewest < least:
        raise ValueError(
            f"Each class must have {least} training images for --components {components}, got {fewest}. Pass a smaller "
            "--components or --val_size."
        )
    most = min(len(train), train.images[0].size)
    if pca > most:
        raise ValueError(f"pca must be at most {most}, got {pca}. Pass --pca {most} or fewer.")


def _save_contact_sheet(train: "ImageSet", pool: "ImageSet", num_classes: int, path: Path) -> None:
    """Write a PNG with a row for each class: training images, a gap, synthetic ones."""
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
