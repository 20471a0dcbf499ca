"""Do the gradients of a model show what its predictions depend on?"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_paf.functional.predictions import predicted
from lightning_paf.functional.saliency import gradient_saliency, most_salient, perturbation_saliency
from lightning_paf.nn.modes import frozen
from lightning_paf.types import Forward


@dataclass(frozen=True, eq=False)
class SaliencyMap:
    """One map for each image, and what pixels in its order do to the prediction.

    Attributes:
        saliency: (N, H, W), at least 0.
        deletion: (N,), mean probability of the predicted class while pixels are taken away, the most salient first;
            small for a map that names the pixels that matter.
        insertion: (N,), the same while pixels are put in place, the most salient first; large for such a map.
    """

    saliency: Tensor
    deletion: Tensor
    insertion: Tensor


@dataclass(frozen=True, eq=False)
class SaliencyComparison:
    """Both maps of some images, for the predicted classes.

    Attributes:
        predictions: (N,), `NO_PREDICTION` where the logits are not finite.
        gradient: Absolute gradient of log p.
        perturbation: Change of the prediction where the image is blurred.
        overlap: (N,), of the most salient 30 % of the pixels of either map, intersection over union; two maps that
            know nothing of each other share 0.18.
    """

    predictions: Tensor
    gradient: SaliencyMap
    perturbation: SaliencyMap
    overlap: Tensor


def compare_saliency(model: nn.Module, x: Tensor, grid: int = 8) -> SaliencyComparison:
    """Compute both maps and judge them.

    Args:
        model: Images (N, C, H, W) in [0, 1] to logits (N, K). Left as found.
        x: Images (N, C, H, W).
        grid: Points in each direction at which the image is blurred.
    """
    with frozen(model):
        with torch.no_grad():
            logits = model(x)
        predictions = logits.argmax(1)  # a class to explain, also where there is no prediction
        maps = gradient_saliency(model, x, predictions), perturbation_saliency(model, x, grid)
        gradient, perturbation = (SaliencyMap(one, *areas(model, x, predictions, one)) for one in maps)
    return SaliencyComparison(predicted(logits), gradient, perturbation, overlap(*maps))


def overlap(first: Tensor, second: Tensor, share: float = 0.3) -> Tensor:
    """Intersection over union (N,) of the most salient pixels of two maps (N, H, W), a share of all pixels each."""
    one, other = (most_salient(saliency, share).flatten(1) for saliency in (first, second))
    return (one & other).sum(1) / (one | other).sum(1)


@torch.no_grad()
def areas(forward: Forward, x: Tensor, y: Tensor, saliency: Tensor, steps: int = 20) -> tuple[Tensor, Tensor]:
    """Areas under the curves of deletion and insertion (Petsiuk et al., "RISE", BMVC 2018).

    A pixel that is not there has the mean of its channel over the image.

    Args:
        forward: Images to logits (N, K).
        x: Images (N, C, H, W).
        y: The classes (N,) whose probability is followed.
        saliency: (N, H, W).
        steps: Parts in which pixels go or come.

    Returns:
        Both areas (N,), in [0, 1].
    """
    empty = x.mean((2, 3), keepdim=True).expand_as(x)
    curves = []
    for step in range(steps + 1):
        first = most_salient(saliency, step / steps)[:, None]
        images = torch.where(first, empty, x), torch.where(first, x, empty)
        curves.append([forward(image).softmax(1).gather(1, y[:, None]).squeeze(1) for image in images])
    deleted, inserted = (
        torch.trapezoid(torch.stack(curve), dx=1 / steps, dim=0) for curve in zip(*curves, strict=True)
    )
    return deleted, inserted
