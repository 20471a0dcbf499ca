"""Certified lower bounds of robust accuracy."""

from lightning_paf.evaluation.certificates.margins import crown, interval_bounds, layer_bounds

__all__ = ["crown", "interval_bounds", "layer_bounds"]
