"""Adversarially robust image classifiers with parametric activation functions."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_paf.attacks import PGD as PGD
    from lightning_paf.attacks import AutoAttack as AutoAttack
    from lightning_paf.data import RobustDataModule as RobustDataModule
    from lightning_paf.evaluation.tensors import evaluate as evaluate
    from lightning_paf.loading import load_run as load_run
    from lightning_paf.nn.activations import ELU as ELU
    from lightning_paf.nn.activations import PELU as PELU
    from lightning_paf.nn.activations import PReLU as PReLU
    from lightning_paf.nn.activations import PReLUPlus as PReLUPlus
    from lightning_paf.nn.activations import PSiLU as PSiLU
    from lightning_paf.nn.activations import PSoftplus as PSoftplus
    from lightning_paf.nn.activations import PSSiLU as PSSiLU
    from lightning_paf.nn.activations import PSSiLUFixed as PSSiLUFixed
    from lightning_paf.nn.activations import ReBLU as ReBLU
    from lightning_paf.nn.activations import ReLU as ReLU
    from lightning_paf.nn.activations import SiLU as SiLU
    from lightning_paf.nn.activations import Softplus as Softplus
    from lightning_paf.nn.activations import Tanh as Tanh
    from lightning_paf.nn.swap import swap_activations as swap_activations
    from lightning_paf.tasks.classification import RobustModule as RobustModule

__version__ = "0.2.0"

_PUBLIC = {
    "attacks": ("PGD", "AutoAttack"),
    "data": ("RobustDataModule",),
    "evaluation.tensors": ("evaluate",),
    "loading": ("load_run",),
    "nn.activations": (
        *("ELU", "PELU", "PReLU", "PReLUPlus", "PSSiLU", "PSSiLUFixed", "PSiLU", "PSoftplus"),
        *("ReBLU", "ReLU", "SiLU", "Softplus", "Tanh"),
    ),
    "nn.swap": ("swap_activations",),
    "tasks.classification": ("RobustModule",),
}
"""Public names by module, imported on first use for a fast `import lightning_paf`."""
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
