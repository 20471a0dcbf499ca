"""Parser of a radius; does not import torch."""

from fractions import Fraction


def radius_from_text(text: str) -> Fraction:
    """Parse a radius exactly: `8/255`, `2.5/255`, `8./255`, `0.031`.

    Raises:
        ValueError: Any other text, also a denominator of 0.
    """
    numerator, slash, denominator = text.replace(" ", "").partition("/")
    try:
        return Fraction(numerator) / Fraction(denominator) if slash else Fraction(numerator)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"it must be a number such as 8/255 or 0.031, got {text!r}") from None
