"""Checks of the arguments of objectives."""

import math
from typing import TypeVar

from lightning_paf.utils import options

T = TypeVar("T")


def checked(name: str, value: T, valid: bool, rule: str, usual: object) -> T:
    """Return the value of an argument if it is valid.

    Raises:
        ValueError: "NAME must be RULE, got VALUE. Pass --model.objective.NAME USUAL."
    """
    return options.checked(name, value, valid, rule, usual, "--model.objective")


def checked_weight(name: str, value: float, usual: float) -> float:
    """Return the weight of a loss term if it is finite and not negative."""
    return checked(name, value, 0 <= value < math.inf, "finite and >= 0", usual)


def checked_smoothing(label_smoothing: float) -> float:
    """Return the label smoothing if it is in [0, 1)."""
    return checked("label_smoothing", label_smoothing, 0 <= label_smoothing < 1, "in [0, 1)", 0.1)
