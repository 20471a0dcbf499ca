"""Draw docs/images/architecture.png from the imports of the package.

    python docs/draw_architecture.py

An arrow means "imports". Arrows implied by others are left out. The edges are also written as JSON, which a test
compares with the imports.
"""

import ast
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from lightning_paf.utils.figures import BLUE, COLOURS, GREY, open_figure, save_figure

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_paf"
DATA = ROOT / "docs" / "images" / "architecture.json"
Node = tuple[str, int]
"""A sub-package or module, and a layer; or a point of the arrow `FROM>TO` in a layer between two of them."""


def layers() -> list[list[str]]:
    """Sub-packages and modules by layer, from the bottom, as in tests/test_layers.py."""
    body = ast.parse((ROOT / "tests" / "test_layers.py").read_text()).body
    (table,) = (n.value for n in body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "LAYERS")
    found: list[list[str]] = ast.literal_eval(table)
    return found


def imports() -> set[tuple[str, str]]:
    """Pairs of sub-packages or modules, of which the first imports the second."""
    modules = {module for layer in layers() for module in layer}
    found = set()
    for path in PACKAGE.rglob("*.py"):
        here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                root, _, rest = name.partition(".")
                there = rest.split(".")[0]
                if root == "lightning_paf" and there in modules and here in modules and there != here:
                    found.add((here, there))
    return found


def edges() -> list[list[str]]:
    """Imports without those implied by others, sorted."""
    direct = imports()
    below: dict[str, set[str]] = {}
    for layer in layers():
        for module in layer:
            targets = {there for here, there in direct if here == module}
            below[module] = targets.union(*(below[there] for there in targets))
    implied = {(here, far) for here, there in direct for far in below[there]}
    return [list(edge) for edge in sorted(direct - implied)]


def paths(level: dict[str, int]) -> Iterator[list[Node]]:
    """Each arrow as its points, one per layer."""
    for here, there in edges():
        between = [(f"{here}>{there}", layer) for layer in range(level[here] - 1, level[there], -1)]
        yield [(here, level[here]), *between, (there, level[there])]


def positions(level: dict[str, int], arrows: list[list[Node]]) -> dict[Node, float]:
    """Horizontal positions in [0, 1]; every layer is sorted by the mean position of its neighbours."""
    nodes = {*level.items(), *(node for arrow in arrows for node in arrow)}
    rows = [sorted(node for node in nodes if node[1] == layer) for layer in range(len(layers()))]
    neighbours: dict[Node, list[Node]] = {node: [] for node in nodes}
    for arrow in arrows:
        for one, other in pairwise(arrow):
            neighbours[one].append(other)
            neighbours[other].append(one)
    x: dict[Node, float] = {}

    def place(row: list[Node]) -> None:
        widths = [0.25 if ">" in name else 1.0 for name, _ in row]
        left = 0.0
        for node, width in zip(row, widths, strict=True):
            x[node] = (left + width / 2) / sum(widths)
            left += width

    for row in rows:
        place(row)
    for _ in range(24):
        for row in (*rows, *reversed(rows)):
            mean = {n: sum(x[m] for m in neighbours[n]) / len(neighbours[n]) if neighbours[n] else x[n] for n in row}
            row.sort(key=mean.__getitem__)
            place(row)
    return x


def draw() -> None:
    """Write the picture and its edges."""
    level = {module: number for number, layer in enumerate(layers()) for module in layer}
    arrows = list(paths(level))
    x = positions(level, arrows)
    with open_figure(11, 9) as figure:
        axes = figure.subplots()
        axes.set_axis_off()
        for number in range(len(layers())):
            axes.axhspan(number - 0.3, number + 0.3, color=BLUE, alpha=0.06, linewidth=0)
            axes.text(-0.05, number, f"{number + 1}", va="center", ha="center", color=GREY)
        for number, arrow in enumerate(arrows):
            look = {"color": COLOURS[number % 7], "alpha": 0.75, "linewidth": 1.1}
            points = [(x[node], node[1]) for node in arrow]
            points[-1] = (points[-1][0], points[-1][1] + 0.2)
            axes.plot(*zip(*points[:-1], strict=True), **look, zorder=2)
            axes.annotate("", points[-1], points[-2], arrowprops={"arrowstyle": "-|>", "shrinkA": 0, **look}, zorder=2)
        for module, layer in level.items():
            box = {"boxstyle": "round,pad=0.4", "facecolor": "white", "edgecolor": GREY}
            axes.text(x[module, layer], layer, module, ha="center", va="center", bbox=box, zorder=3)
        axes.set_xlim(-0.08, 1.02)
        axes.set_ylim(-0.5, len(layers()) - 0.5)
    save_figure(figure, DATA.with_suffix(".png"))
    DATA.write_text("".join(["[\n", ",\n".join(f"  {json.dumps(edge)}" for edge in edges()), "\n]\n"]))


if __name__ == "__main__":
    draw()
