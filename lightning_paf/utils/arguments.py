"""Parsers of numeric command-line options with a range."""

import argparse
import math
from collections.abc import Callable
from typing import NoReturn, TypeVar

Number = TypeVar("Number", bound=float)


def number(
    kind: Callable[[str], Number], *, least: float = -math.inf, above: float = -math.inf, most: float = math.inf
) -> Callable[[str], Number]:
    """Make the `type` of an option for `argparse`.

    Args:
        kind: `int`, `float`, or `Fraction` for exact values such as `8/255`.
        least: Smallest value allowed.
        above: Bound that the value must exceed.
        most: Largest value allowed.

    Returns:
        A parser of finite numbers that raises `argparse.ArgumentTypeError` with the bounds and the text.
    """
    bounds = [(least, "at least"), (above, "above"), (most, "at most")]
    rule = " and ".join(f"{words} {bound:g}" for bound, words in bounds if math.isfinite(bound))

    def parse(text: str) -> Number:
        must = rule
        try:
            value = kind(text)
            if not math.isfinite(value):
                must = "finite"
            elif value >= least and value > above and value <= most:
                return value
        except OverflowError:  # a fraction beyond all floats
            must = "finite"
        except (ValueError, ZeroDivisionError):
            pass
        raise argparse.ArgumentTypeError(f"must be {must}, got {text}")

    return parse


positive = number(int, least=1)
"""Parser of a count."""


class CommandParser(argparse.ArgumentParser):
    """A parser with the errors of all commands: one line and exit status 1."""

    def error(self, message: str) -> NoReturn:
        """Report invalid options.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f"{message}. See `{self.prog} --help`.")


def command_parser(command: str, description: str | None, epilog: str | None = None) -> CommandParser:
    """Make the parser of `lightning-paf COMMAND`, without abbreviated options."""
    return CommandParser(f"lightning-paf {command}", description=description, epilog=epilog, allow_abbrev=False)
