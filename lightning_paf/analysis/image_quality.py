"""Fréchet and kernel distance, memorisation, precision and recall of images."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_paf.analysis.base import table
from lightning_paf.functional.neighbours import manifold_fraction, nearest

LEAST = 4
"""Fewest images: one more than the k = 3 neighbours of precision and recall."""

_SUBSETS, _SUBSET_SIZE = 20, 1000
_FAR = 0.1  # mean cosine distance from which MiFID equals FID, the default of torchmetrics


@dataclass(frozen=True)
class ImageQuality:
    """Quality of images against reference images, by the features of a network.

    Attributes:
        samples: Number of images.
        fid: Fréchet distance (Heusel et al. 2017). Its bias falls with the number of images: compare equal numbers.
        kid: Squared maximum mean discrepancy of a cubic kernel (Bińkowski et al. 2018), without bias; can be negative.
        kid_std: Standard deviation over random subsets of at most 1,000 images.
        mifid: `fid`, divided by the mean cosine distance to the nearest reference image if that is below 0.1 (Bai et
            al. 2021): high for copies of the reference.
        precision: Fraction of the images on the manifold of the reference (Kynkäänniemi et al. 2019, k = 3).
        recall: Fraction of the reference on the manifold of the images.
    """

    samples: int
    fid: float
    kid: float
    kid_std: float
    mifid: float
    precision: float
    recall: float


def image_quality(features: Tensor, reference: Tensor, seed: int = 0) -> ImageQuality:
    """Compare features of images with those of reference images.

    Args:
        features: (N, d), N at least `LEAST`.
        reference: (M, d), M at least `LEAST`.
        seed: Seed of the subsets of KID.

    Raises:
        ValueError: Too few images, or features that are not finite.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    features, reference = features.double(), reference.double()
    if not (features.isfinite().all() and reference.isfinite().all()):
        raise ValueError("Features must be finite, got NaN or infinity. Pass another checkpoint.")
    least = min(len(features), len(reference))
    if least < LEAST:
        raise ValueError(f"There must be at least {LEAST} images, got {least}. Pass more images.")
    identity, size = nn.Identity(), (1, 1, features.shape[1])
    fid = FrechetInceptionDistance(identity, normalize=True, input_img_size=size).to(features.device)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save all")
        kid = KernelInceptionDistance(identity, subsets=_SUBSETS, subset_size=min(_SUBSET_SIZE, least))
    for metric in (fid, kid):
        metric.update(reference, real=True)
        metric.update(features, real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kid_mean, kid_std = (float(value) for value in kid.compute())
    distance = max(0.0, float(fid.compute()))  # rounding can lead below 0
    near = memorisation_distance(features, reference)
    return ImageQuality(
        samples=len(features),
        fid=distance,
        kid=kid_mean,
        kid_std=kid_std,
        # The constant, as in torchmetrics, makes a large number of exact copies.
        mifid=distance / (near + 1e-14 if near < _FAR else 1.0),
        precision=manifold_fraction(reference, features),
        recall=manifold_fraction(features, reference),
    )


def memorisation_distance(features: Tensor, reference: Tensor) -> float:
    """Mean cosine distance `1 - |cos|` to the nearest reference (Bai et al. 2021).

    torchmetrics 1.9 averages over the reference instead, where copies of few reference images go unnoticed. As there,
    features that are all zero are left out.

    Args:
        features: (N, d).
        reference: (M, d).
    """
    unit, other = (nn.functional.normalize(part[part.any(1)]) for part in (features, reference))
    closest = torch.minimum(*(nearest(unit, side, unit.device)[0] for side in (other, -other)))
    return float(closest.square().mean() / 2)  # |u - v|^2 = 2 - 2 cos


def quality_table(quality: Mapping[str, ImageQuality], reference: int) -> list[str]:
    """Lines of a table with a row for each set of images."""
    head = ("", "images", "FID", "KID x 1000", "MiFID", "precision", "recall")
    rows = [
        (
            name,
            f"{q.samples:,}",
            f"{q.fid:.4g}",
            f"{1000 * q.kid:.3g}",
            f"{q.mifid:.4g}",
            *map("{:.3f}".format, (q.precision, q.recall)),
        )
        for name, q in quality.items()
    ]
    return ["", f"Quality against {reference:,} training images", *table(head, *rows)]
