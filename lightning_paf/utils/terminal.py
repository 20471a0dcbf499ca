"""Text of files for the terminal."""


def printable(text: object) -> str:
    """Replace control characters, which could control the terminal, by `?`."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(text))
