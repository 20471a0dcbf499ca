"""Certificates as a part of an evaluation."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_paf.evaluation.certificates.certify import certify
from lightning_paf.evaluation.outcomes import CERTIFIED
from lightning_paf.functional.geometry import geometry_of
from lightning_paf.functional.predictions import misclassified
from lightning_paf.nn.modes import frozen

if TYPE_CHECKING:
    from lightning_paf.evaluation.evaluate import Evaluation

_POINTS = 8
"""Random points on the boundary of each certified ball that are evaluated."""


def certified_ids(evaluation: "Evaluation", ids: NDArray[np.int64], x: Tensor, y: Tensor) -> dict[str, list[int]]:
    """Certify correctly classified samples of a block.

    Args:
        evaluation: Evaluation with a method of certificates.
        ids: Indices of the samples in the dataset.
        x: Images (N, C, H, W).
        y: Labels (N,).

    Returns:
        The certified samples, for the note of a record.

    Raises:
        ValueError: A layer or the norm has no bounds, or a random point contradicts a certificate.
    """
    attack, method = evaluation.attack, evaluation.certify
    assert method is not None
    if attack.bounds != (0.0, 1.0):
        raise ValueError(f"bounds must be 0 and 1 for certificates, got {attack.bounds}. Pass an attack with [0, 1].")
    certified = certify(evaluation.model, x, y, attack.radius, attack.norm, method).certified
    x, y, found = x[certified], y[certified], ids[certified.cpu().numpy()]
    geometry = geometry_of(attack.norm)
    generator = torch.Generator(x.device).manual_seed(0)
    with torch.no_grad(), frozen(evaluation.model):
        for _ in range(_POINTS if len(x) else 0):
            noise = torch.randn(x.shape, generator=generator, device=x.device)
            shift = attack.radius * geometry.ascent(noise, x, attack.bounds)
            logits = evaluation.model(geometry.move(x, shift, attack.radius, attack.bounds))
            check_consistent(found[misclassified(logits, y).cpu().numpy()], method)
    return {CERTIFIED: found.tolist()}


def check_consistent(contradictions: NDArray[np.int64], method: str) -> None:
    """Refuse certificates of samples that are fooled within the radius.

    Raises:
        ValueError: There are such samples.
    """
    if len(contradictions):
        samples = ", ".join(map(str, contradictions[:5].tolist()))
        raise ValueError(
            f"Certified samples must not be fooled, got {samples} with a certificate by {method} and an adversarial "
            "image. This is a bug in the certificate, or the network does not compute in float32. Report it, and "
            "evaluate without certificates."
        )
