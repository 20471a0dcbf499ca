"""Stateless functions: per-example losses, and geometry of perturbations."""

from lightning_paf.functional.geometry import Geometry, geometry_of
from lightning_paf.functional.losses import cross_entropy, dlr, kl_divergence, margin
from lightning_paf.functional.predictions import misclassified, predicted

__all__ = [
    "Geometry",
    "cross_entropy",
    "dlr",
    "geometry_of",
    "kl_divergence",
    "margin",
    "misclassified",
    "predicted",
]
