"""All training objectives of the package, each built as a user would."""

import inspect
import tempfile
from pathlib import Path

import torch

from lightning_paf.nets import LTNODE
from lightning_paf.nn.classifier import Classifier
from lightning_paf.objectives import AWP, ELBO, HAT, TRADES, JointCE, Objective, SteadyState

TWO_CLASSES = {"BinaryTRADES"}
"""Objectives for two classes; separate test files check their properties."""


class HelpedByItself(HAT):
    """HAT whose network with standard training is the one that it is bound to."""

    def __init__(self) -> None:
        super().__init__(Path("none.ckpt"))

    def bind(self, model: Classifier) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.standard = Path(folder) / "standard.ckpt"
            torch.save({"state_dict": {f"model.{k}": v for k, v in model.state_dict().items()}}, self.standard)
            super().bind(model)


class OfLatentTime(ELBO):
    """The bound, with a network that it puts in the place of the one that it is bound to."""

    def bind(self, model: Classifier) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model.net = LTNODE(in_channels=3, width=4, groups=2, step=0.5)
        model.head_name = "fc"
        super().bind(model)


class WithoutBlock(SteadyState):
    """The steady-state penalty before its first epoch, on a network without ODE block."""

    def bind(self, model: Classifier) -> None:
        self.objective.bind(model)


class WithoutProbes(JointCE):
    """The joint loss on a network without probes, where it is a multiple of adversarial training."""

    def bind(self, model: Classifier) -> None:
        pass


SPECIAL = {
    "AWP": lambda: AWP(TRADES()),
    "ELBO": OfLatentTime,
    "HAT": HelpedByItself,
    "JointCE": WithoutProbes,
    "SteadyState": WithoutBlock,
}
"""Builders of classes that need arguments, by name."""


def concrete(cls: type) -> list[type]:
    """All subclasses that are not abstract, sorted by name."""
    below = [sub for child in cls.__subclasses__() for sub in [child, *concrete(child)]]
    return sorted({sub for sub in below if not inspect.isabstract(sub)}, key=lambda c: c.__name__)


OBJECTIVES = [
    cls
    for cls in concrete(Objective)
    if cls.__module__.startswith("lightning_paf.") and cls.__name__ not in TWO_CLASSES
]


def build(cls: type) -> Objective:
    """An objective with its default arguments."""
    return SPECIAL.get(cls.__name__, cls)()
