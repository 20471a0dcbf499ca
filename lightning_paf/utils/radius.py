"""Parser of a radius; does not import torch."""

from fractions import Fraction


def radius_from_text(text: str) -> Fraction:
    """Parse a radius exactly: `8/255`, `2.5/255`, `8./255`, `0.031`.

    Raises:
        ValueError: Any other text.
        ZeroDivisionError: The denominator is 0.
    """
    numerator, slash, denominator = text.replace(" ", "").partition("/")
    return Fraction(numerator) / Fraction(denominator) if slash else Fraction(numerator)
