"""Text of files for the terminal."""


def printable(text: object) -> str:
    """Replace control characters, which could control the terminal, by `?`."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(text))


def clause(text: object) -> str:
    """Return the text of an error as one line without its full stop."""
    return " ".join(str(text).split()).rstrip(".")
