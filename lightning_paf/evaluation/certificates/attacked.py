"""Certificates compared with the evidence of attacks."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_paf.evaluation.certificates.records import check_consistent
from lightning_paf.evaluation.evidence.read import Evidence, evidence_files, read
from lightning_paf.types import Norm, Radius
from lightning_paf.utils.hashing import sample_fingerprints, weights_fingerprint
from lightning_paf.utils.radius import radius_from_text


def evidence_of(folder: Path, model: nn.Module, x: Tensor, y: Tensor, norm: Norm) -> list[Evidence]:
    """Read the evidence in a folder against the same weights and samples.

    Args:
        folder: Folder of results.
        model: The certified network.
        x: Images (N, C, H, W) with the indices 0 to N - 1 in the dataset.
        y: Labels (N,).
        norm: Norm of the perturbations.

    Raises:
        ValueError: A damaged file of evidence.
    """
    weights, inputs = weights_fingerprint(model), sample_fingerprints(x, y)
    found = (read(path) for path in evidence_files(folder))
    return [
        evidence
        for evidence in found
        if evidence.metadata["weights"] == weights
        and evidence.metadata["attack"]["norm"] == norm
        and _same_inputs(evidence, inputs)
    ]


def check_evidence(evidence: Iterable[Evidence], certified: NDArray[np.bool_], eps: Radius, method: str) -> None:
    """Check that no sample with a certificate was fooled at a radius up to `eps`.

    Args:
        evidence: Evidence against the certified network.
        certified: Whether each sample 0 to N - 1 has a certificate, (N,).
        eps: Radius of the certificates.
        method: Their method.

    Raises:
        ValueError: A certificate contradicts an attack.
    """
    for part in evidence:
        if radius_from_text(part.metadata["attack"]["eps"]) <= eps:
            fooled = part.ids[part.fooled]
            fooled = fooled[fooled < len(certified)]
            check_consistent(fooled[certified[fooled]], method)


def _same_inputs(evidence: Evidence, inputs: NDArray[np.uint8]) -> bool:
    shared = np.flatnonzero(evidence.ids < len(inputs))
    return len(shared) > 0 and np.array_equal(evidence.inputs[shared], inputs[evidence.ids[shared]])
