"""Links of Markdown files."""

import re
from pathlib import Path


def anchors(text: str) -> set[str]:
    """Anchors of all headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def target_exists(document: Path, link: str) -> bool:
    """Whether the file and the heading of a relative link in a document exist."""
    name, _, anchor = link.partition("#")
    path = document.parent / name if name else document
    return path.exists() and (not anchor or anchor in anchors(path.read_text()))
