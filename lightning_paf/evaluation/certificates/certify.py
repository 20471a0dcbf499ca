"""Certificates of single images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lightning_paf.evaluation.certificates.methods import IBP, AlphaCrown, Crown, CrownIBP, Method
from lightning_paf.functional.predictions import check_labels, misclassified
from lightning_paf.nn.bounds.network import Network
from lightning_paf.nn.bounds.propagation import check_logits, margin_weights
from lightning_paf.nn.bounds.region import region_of
from lightning_paf.nn.modes import frozen, full_precision
from lightning_paf.types import Norm

MethodName = Literal["ibp", "crown-ibp", "crown", "alpha-crown"]
"""Methods of `certify`, from the fastest to the tightest."""

_METHODS: Mapping[str, tuple[Method, ...]] = MappingProxyType(
    {
        "ibp": (IBP(),),
        "crown-ibp": (IBP(), CrownIBP()),
        "crown": (IBP(), CrownIBP(), Crown()),
        "alpha-crown": (IBP(), CrownIBP(), AlphaCrown()),
    }
)
"""Methods to run in turn, each on the images without a certificate."""


@dataclass(frozen=True, eq=False)
class MarginCertificates:
    """Lower bounds of margins.

    Attributes:
        margins: (N,) float64; on its ball, the logit of an image's label exceeds every other one at least by this.
        correct: Mask of the images that are classified correctly, (N,) bool.
    """

    margins: Tensor
    correct: Tensor

    @property
    def certified(self) -> Tensor:
        """Mask of the images that no perturbation in the ball misclassifies, (N,) bool."""
        return self.margins > 0


def certify(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float,
    norm: Norm = "linf",
    method: MethodName = "crown",
    batch_size: int = 16,
    progress: Callable[[int], object] = lambda _: None,
) -> MarginCertificates:
    """Bound the margins of images below on norm balls intersected with [0, 1].

    Bounds hold for the network over the real numbers and for its evaluation in float32; see `nn.bounds.layers.base` for
    the assumptions about rounding. Cheaper methods run first, and an image with a certificate is done. TF32 and
    autocast are disabled. The model is left unchanged.

    Args:
        model: Maps images (N, C, H, W) to logits (N, classes), evaluated in eval mode.
        images: (N, C, H, W) in [0, 1].
        labels: (N,) int64.
        eps: Radius, above 0.
        norm: `linf` or `l2`.
        method: `ibp`, `crown-ibp`, `crown` or `alpha-crown`.
        batch_size: Images at once.
        progress: Called with the number of finished images.

    Raises:
        ValueError: An unknown method or norm, a radius that is not positive, pixels outside [0, 1], wrong labels, or a
            layer without bounds.
    """
    if method not in _METHODS:
        raise ValueError(f"method must be one of {', '.join(get_args(MethodName))}, got {method!r}. Pass crown.")
    region_of(norm, images[:1], eps)
    if len(images) == 0 or not bool(((images >= 0) & (images <= 1)).all()):
        raise ValueError("images must be at least one, with pixels in [0, 1]. Scale them to [0, 1].")
    check_labels(labels, len(images), soft=False)
    with torch.no_grad(), frozen(model), full_precision(), torch.autocast(images.device.type, enabled=False):
        network = Network(model, images[:1])
        parts = []
        for x, y in zip(torch.split(images, batch_size), torch.split(labels, batch_size), strict=True):
            parts.append(_margins(model, network, x, y, eps, norm, _METHODS[method]))
            progress(sum(len(y) for _, y in parts))
    return MarginCertificates(*map(torch.cat, zip(*parts, strict=True)))


def _margins(
    model: nn.Module, network: Network, x: Tensor, y: Tensor, eps: float, norm: Norm, methods: tuple[Method, ...]
) -> tuple[Tensor, Tensor]:
    """Lower bounds (N,) by methods in turn, and mask of the correct images."""
    logits = model(x)
    check_logits(network, x, logits)
    correct = ~misclassified(logits, y)
    weights = margin_weights(y, logits.shape[1], logits)
    best = torch.full((len(x),), -torch.inf, dtype=torch.float64, device=x.device)
    rest = torch.arange(len(x), device=x.device)
    for method in methods:
        bounds = method(network, region_of(norm, x[rest], eps), weights[:, rest]).amin(0)
        best[rest] = torch.maximum(best[rest], bounds.nan_to_num(-torch.inf, -torch.inf, -torch.inf))
        rest = torch.nonzero((best <= 0) & correct).flatten()
        if len(rest) == 0:
            break
    return best, correct
