"""Certified lower bounds of robust accuracy."""

from lightning_paf.evaluation.certificates.activations import interval_bounds, layer_bounds
from lightning_paf.evaluation.certificates.certify import MarginCertificates, MethodName, certify
from lightning_paf.evaluation.certificates.methods import IBP, AlphaCrown, Crown, CrownIBP

__all__ = [
    "IBP",
    "AlphaCrown",
    "Crown",
    "CrownIBP",
    "MarginCertificates",
    "MethodName",
    "certify",
    "interval_bounds",
    "layer_bounds",
]
