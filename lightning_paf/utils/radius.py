"""Reader of a radius, without torch."""

from fractions import Fraction


def radius_from_text(text: str) -> Fraction:
    """Read `8/255`, `2.5/255`, `8./255` or `0.031` exactly.

    Args:
        text: A decimal number, or a fraction of two.

    Raises:
        ValueError: Anything else.
        ZeroDivisionError: The denominator is 0.
    """
    numerator, slash, denominator = text.replace(" ", "").partition("/")
    return Fraction(numerator) / Fraction(denominator) if slash else Fraction(numerator)
