"""Activation functions: fixed baselines and those of Dai et al. (2021)."""

from lightning_paf.nn.activations.base import Activation, ParametricActivation, fuse_activations
from lightning_paf.nn.activations.fixed import ELU, ReLU, SiLU, Softplus, Tanh
from lightning_paf.nn.activations.pssilu import PSSiLU, PSSiLUFixed
from lightning_paf.nn.activations.rectified import PELU, PReLU, PReLUPlus, ReBLU
from lightning_paf.nn.activations.smooth import PSiLU, PSoftplus

__all__ = [
    "ELU",
    "PELU",
    "Activation",
    "PReLU",
    "PReLUPlus",
    "PSSiLU",
    "PSSiLUFixed",
    "PSiLU",
    "PSoftplus",
    "ParametricActivation",
    "ReBLU",
    "ReLU",
    "SiLU",
    "Softplus",
    "Tanh",
    "fuse_activations",
]
