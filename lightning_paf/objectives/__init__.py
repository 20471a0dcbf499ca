"""Training losses; one file per method."""

from lightning_paf.objectives.awp import AWP
from lightning_paf.objectives.base import Objective, StepResult
from lightning_paf.objectives.certified import Certified
from lightning_paf.objectives.cost_sensitive import CSA, CostSensitive, CostSensitiveAT
from lightning_paf.objectives.crown_ibp import CROWNIBP
from lightning_paf.objectives.dial import DIALCE, DIALKL
from lightning_paf.objectives.dkl import IKL
from lightning_paf.objectives.elbo import ELBO
from lightning_paf.objectives.er_cla import ERCLA
from lightning_paf.objectives.first_layer_penalty import FirstLayerPenalty
from lightning_paf.objectives.gaussian_noise import NoisyCE
from lightning_paf.objectives.grad_align import GradAlign
from lightning_paf.objectives.hat import HAT
from lightning_paf.objectives.ibp import IBP
from lightning_paf.objectives.interpolated import IAT
from lightning_paf.objectives.joint import JointCE
from lightning_paf.objectives.jsigr import JacobianNorm, SelectiveInputGradient
from lightning_paf.objectives.l1_minus_l2 import L1MinusL2
from lightning_paf.objectives.mart import MART
from lightning_paf.objectives.pixel_mask import PixelMask
from lightning_paf.objectives.sabr import SABR
from lightning_paf.objectives.score import SCORE
from lightning_paf.objectives.squared_error import AdversarialSquaredError, SquaredError
from lightning_paf.objectives.standard import AdversarialCE, Natural
from lightning_paf.objectives.steady_state import SteadyState
from lightning_paf.objectives.terminal_cost import TerminalCost
from lightning_paf.objectives.trades import TRADES, BinaryTRADES
from lightning_paf.objectives.wrapper import Regularised, Wrapper

__all__ = [
    "AWP",
    "CROWNIBP",
    "CSA",
    "DIALCE",
    "DIALKL",
    "ELBO",
    "ERCLA",
    "HAT",
    "IAT",
    "IBP",
    "IKL",
    "MART",
    "SABR",
    "SCORE",
    "TRADES",
    "AdversarialCE",
    "AdversarialSquaredError",
    "BinaryTRADES",
    "Certified",
    "CostSensitive",
    "CostSensitiveAT",
    "FirstLayerPenalty",
    "GradAlign",
    "JacobianNorm",
    "JointCE",
    "L1MinusL2",
    "Natural",
    "NoisyCE",
    "Objective",
    "PixelMask",
    "Regularised",
    "SelectiveInputGradient",
    "SquaredError",
    "SteadyState",
    "StepResult",
    "TerminalCost",
    "Wrapper",
]
