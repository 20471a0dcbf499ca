"""Checks of the arguments of a class."""

from typing import TypeVar

T = TypeVar("T")


def checked(name: str, value: T, valid: bool, rule: str, usual: object, option: str = "--model.net") -> T:
    """Return the value of an argument if it is valid; `option` is that of its class.

    Raises:
        ValueError: "NAME must be RULE, got VALUE. Pass OPTION.NAME USUAL."
    """
    if not valid:
        raise ValueError(f"{name} must be {rule}, got {value!r}. Pass {option}.{name} {usual}.")
    return value
