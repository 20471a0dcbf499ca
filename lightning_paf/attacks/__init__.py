"""Adversarial attacks with one interface, `attack(model, x, y)`."""

from lightning_paf.attacks.adam_pgd import AdamPGD
from lightning_paf.attacks.apgd import APGD
from lightning_paf.attacks.autoattack import AutoAttack, AutoAttackResult
from lightning_paf.attacks.base import Attack, loss_and_gradient, radius_text
from lightning_paf.attacks.catalogue.boundary import Boundary
from lightning_paf.attacks.catalogue.carlini_wagner import CarliniWagner
from lightning_paf.attacks.catalogue.deepfool import DeepFool
from lightning_paf.attacks.catalogue.direction_search import OPT, SignOPT
from lightning_paf.attacks.catalogue.fmn import FMN
from lightning_paf.attacks.catalogue.foolbox_attack import FoolboxAttack
from lightning_paf.attacks.catalogue.jsma import JSMA
from lightning_paf.attacks.catalogue.least_likely import ILCM
from lightning_paf.attacks.catalogue.mi_fgsm import MIFGSM, EnsembleMIFGSM
from lightning_paf.attacks.catalogue.minimal import MinimalAttack
from lightning_paf.attacks.catalogue.one_pixel import OnePixel
from lightning_paf.attacks.catalogue.sensitivity_l2 import SensitivityL2
from lightning_paf.attacks.catalogue.sigma_zero import SigmaZero
from lightning_paf.attacks.catalogue.universal import UniversalPerturbation
from lightning_paf.attacks.catalogue.zoo import ZOO
from lightning_paf.attacks.fab import FAB
from lightning_paf.attacks.fgsm import FGSM, NFGSM, RSFGSM, SingleStep
from lightning_paf.attacks.joint import JointAttack, JointGrid
from lightning_paf.attacks.l2_ascent import L2Ascent
from lightning_paf.attacks.pgd import PGD
from lightning_paf.attacks.reference_autoattack import ReferenceAutoAttack
from lightning_paf.attacks.replay import Recorded
from lightning_paf.attacks.smoothed_pgd import SmoothedPGD
from lightning_paf.attacks.square import Square
from lightning_paf.attacks.sub_attack import run_sub_attack
from lightning_paf.attacks.wrappers import Restarts, WorstOf
from lightning_paf.attacks.zero_mean_pgd import ZeroMeanPGD

__all__ = [
    "APGD",
    "FAB",
    "FGSM",
    "FMN",
    "ILCM",
    "JSMA",
    "MIFGSM",
    "NFGSM",
    "OPT",
    "PGD",
    "RSFGSM",
    "ZOO",
    "AdamPGD",
    "Attack",
    "AutoAttack",
    "AutoAttackResult",
    "Boundary",
    "CarliniWagner",
    "DeepFool",
    "EnsembleMIFGSM",
    "FoolboxAttack",
    "JointAttack",
    "JointGrid",
    "L2Ascent",
    "MinimalAttack",
    "OnePixel",
    "Recorded",
    "ReferenceAutoAttack",
    "Restarts",
    "SensitivityL2",
    "SigmaZero",
    "SignOPT",
    "SingleStep",
    "SmoothedPGD",
    "Square",
    "UniversalPerturbation",
    "WorstOf",
    "ZeroMeanPGD",
    "loss_and_gradient",
    "radius_text",
    "run_sub_attack",
]
