"""All training objectives of the package, each built as a user would."""

import inspect

from lightning_paf.objectives import Objective

SPECIAL = {}
"""Class name: how to build it, where it does not build without arguments."""


def concrete(cls: type) -> list[type]:
    """All subclasses that can be built, by name."""
    below = [sub for child in cls.__subclasses__() for sub in [child, *concrete(child)]]
    return sorted({sub for sub in below if not inspect.isabstract(sub)}, key=lambda c: c.__name__)


OBJECTIVES = [cls for cls in concrete(Objective) if cls.__module__.startswith("lightning_paf.")]


def build(cls: type) -> Objective:
    """An objective with its default arguments."""
    return SPECIAL.get(cls.__name__, cls)()
