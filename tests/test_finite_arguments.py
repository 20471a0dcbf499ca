"""Arguments of all public classes that must be finite."""

import inspect
import math
from typing import get_type_hints

import pytest
import torch
from torch import nn

from lightning_paf import attacks, callbacks, nets, objectives, schedules
from lightning_paf.attacks import PGD
from lightning_paf.data import augment, mixing
from lightning_paf.nets import CifarResNet
from lightning_paf.nn import activations, channel_gate, sam, sobolev_ncg
from lightning_paf.objectives import Natural
from lightning_paf.types import Radius

INFINITE = {("JointAttack", "weight"), ("PSSiLU", "beta_clip")}
"""Arguments that can be infinite, but not NaN."""

REQUIRED = {
    "attack": PGD(),
    "attacks": [PGD()],
    "channels": 3,
    "monitor": "val/acc",
    "net": CifarResNet(width=4),
    "num_classes": 10,
    "objective": Natural(),
    "params": [nn.Parameter(torch.zeros(2))],
    "standard": "none.ckpt",
    "surrogates": [nn.Flatten()],
}
MODULES = (attacks, augment, callbacks, mixing, nets, objectives, schedules)
PARTS = (activations, channel_gate, sam, sobolev_ncg)


def cases():
    """Yield class, required arguments, name and value."""
    for cls in {cls for module in (*MODULES, *PARTS) for cls in vars(module).values() if inspect.isclass(cls)}:
        if cls.__module__.startswith("lightning_paf.") and not inspect.isabstract(cls):
            parameters = inspect.signature(cls).parameters
            required = {name: REQUIRED[name] for name in parameters.keys() & REQUIRED.keys()}
            hints = get_type_hints(cls.__init__)
            for name in parameters:
                if hints.get(name) in (float, float | None, Radius, Radius | None):
                    for value in (math.nan,) if (cls.__name__, name) in INFINITE else (math.nan, math.inf):
                        yield pytest.param(cls, required, name, value, id=f"{cls.__name__}-{name}-{value}")


@pytest.mark.parametrize(("cls", "required", "name", "value"), sorted(cases(), key=lambda case: case.id))
def test_numbers_that_are_not_finite_are_refused(cls, required, name, value):
    with pytest.raises(ValueError, match=rf"\b{name}\b.*got .*{value}"):
        cls(**{**required, name: value})
