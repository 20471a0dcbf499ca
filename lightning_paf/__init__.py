"""lightning_paf: adversarially robust image classifiers with parametric activation functions."""

__version__ = "0.1.0"
