"""Images from a Gaussian mixture for each class."""

import numpy as np

from lightning_paf.data.sources import ImageSet
from lightning_paf.specs import DatasetSpec

PCA_ABOVE = 256
"""Values of an image above which principal components are fitted.

A full covariance of more values is slow, and singular for most classes.
"""
PCA_DIMENSIONS = 128
REGULARISATION = 1e-3
"""Added to every variance of pixels in [0, 1]; constant pixels have none."""


def sample_mixture(
    train: ImageSet, spec: DatasetSpec, count: int, components: int, pca: int | None, seed: int
) -> ImageSet:
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
    from rich.progress import track
    from sklearn.decomposition import PCA
    from sklearn.mixture import GaussianMixture
    from sklearn.preprocessing import FunctionTransformer

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


def _check_enough(train: ImageSet, spec: DatasetSpec, count: int, components: int, pca: int) -> None:
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
