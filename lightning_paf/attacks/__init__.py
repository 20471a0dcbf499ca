"""Makers of adversarial images: one call, `attack(model, x, y)`, for all."""

from lightning_paf.attacks.adam_pgd import AdamPGD
from lightning_paf.attacks.apgd import APGD
from lightning_paf.attacks.autoattack import AutoAttack, AutoAttackResult
from lightning_paf.attacks.base import Attack, loss_and_gradient, radius_text
from lightning_paf.attacks.fab import FAB
from lightning_paf.attacks.fgsm import FGSM, NFGSM, RSFGSM, SingleStep
from lightning_paf.attacks.l2_ascent import L2Ascent
from lightning_paf.attacks.pgd import PGD
from lightning_paf.attacks.recorded import Recorded
from lightning_paf.attacks.reference_autoattack import ReferenceAutoAttack
from lightning_paf.attacks.square import Square
from lightning_paf.attacks.stage import run_stage
from lightning_paf.attacks.wrappers import Restarts, WorstOf

__all__ = [
    "APGD",
    "FAB",
    "FGSM",
    "NFGSM",
    "PGD",
    "RSFGSM",
    "AdamPGD",
    "Attack",
    "AutoAttack",
    "AutoAttackResult",
    "L2Ascent",
    "Recorded",
    "ReferenceAutoAttack",
    "Restarts",
    "SingleStep",
    "Square",
    "WorstOf",
    "loss_and_gradient",
    "radius_text",
    "run_stage",
]
