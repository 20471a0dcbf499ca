"""Makers of adversarial images: one call, `attack(model, x, y)`, for all."""

from lightning_paf.attacks.autoattack import AutoAttack, AutoAttackResult
from lightning_paf.attacks.base import Attack, loss_and_gradient, radius_text
from lightning_paf.attacks.fgsm import FGSM, NFGSM, RSFGSM
from lightning_paf.attacks.pgd import PGD
from lightning_paf.attacks.wrappers import Restarts, WorstOf

__all__ = [
    "FGSM",
    "NFGSM",
    "PGD",
    "RSFGSM",
    "Attack",
    "AutoAttack",
    "AutoAttackResult",
    "Restarts",
    "WorstOf",
    "loss_and_gradient",
    "radius_text",
]
