"""A page that needs no server: elements whose text is always escaped, tables, sections, the frame."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from xml.etree import ElementTree as ET

Node = ET.Element | str

_TEMPLATE = Path(__file__).with_name("report.html")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def element(tag: str, /, *children: Node, **attributes: str) -> ET.Element:
    """An element of HTML or SVG.

    Args:
        tag: `p`, `table`, `rect`, ...
        children: Elements, and text, which is escaped when the page is written.
        attributes: `class_` stands for `class`, other underscores for hyphens.
    """
    named = {name.rstrip("_").replace("_", "-"): _printable(value) for name, value in attributes.items()}
    made = ET.Element(tag, named)
    for child in children:
        if isinstance(child, ET.Element):
            made.append(child)
        elif len(made):
            made[-1].tail = (made[-1].tail or "") + _printable(child)
        else:
            made.text = (made.text or "") + _printable(child)
    return made


def section(title: str, *children: Node) -> ET.Element:
    """A part of the page under a heading."""
    return element("section", element("h2", title), *children)


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[Node]], *, words: int = 1) -> ET.Element:
    """A table that scrolls sideways on its own where the page is too narrow.

    Args:
        title: For screen readers.
        head: Names of the columns.
        rows: Cells; the first of each row names the row.
        words: How many columns, from the left, hold text; the others hold numbers and are aligned as such.
    """

    def side(place: int) -> str:
        return "word" if place < words else "number"

    names = [element("th", name, scope="col", class_=side(place)) for place, name in enumerate(head)]
    lines = [
        element(
            "tr",
            element("th", row[0], scope="row", class_="word"),
            *(element("td", cell, class_=side(place)) for place, cell in enumerate(row[1:], start=1)),
        )
        for row in rows
    ]
    whole = element("table", element("thead", element("tr", *names)), element("tbody", *lines))
    return element("div", whole, class_="wide", role="region", tabindex="0", aria_label=title)


def facts(pairs: Mapping[str, Node]) -> ET.Element:
    """A list of names and values."""
    return element("dl", *(element("div", element("dt", name), element("dd", value)) for name, value in pairs.items()))


def code(text: str) -> ET.Element:
    """A command, a hash or another thing to copy."""
    return element("code", text)


def page(title: str, *body: Node) -> str:
    """The whole file.

    Args:
        title: Of the window.
        body: What stands in `<main>`.
    """
    main = ET.tostring(element("main", *body), encoding="unicode", method="html")
    name = ET.tostring(element("title", title), encoding="unicode", method="html")
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(title=name, main=main)


def _printable(text: str) -> str:
    """Without the characters that no HTML document may hold."""
    return _CONTROL.sub("\ufffd", text)
