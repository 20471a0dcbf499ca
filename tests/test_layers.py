"""Imports point downwards, and files stay readable. Pure `ast`, no torch."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "lightning_paf"
LAYERS = [
    ["utils", "types", "specs", "schedules", "recipes"],
    ["functional", "nn", "data"],
    ["speed", "nets", "runs", "synthesis"],
    ["attacks"],
    ["objectives", "evaluation"],
    ["tasks", "callbacks", "analysis", "interop"],
    ["cli"],
    ["loading", "__main__"],
    ["experiments"],
    ["commands"],
]
LAYER = {unit: number for number, units in enumerate(LAYERS) for unit in units}
WITH_LIGHTNING = {"data", "runs", "tasks", "callbacks", "cli", "loading"}
FILES = sorted(PACKAGE.rglob("*.py"))
HEAVY = {
    "timm", "torchvision", "pyautoattack", "autoattack", "sklearn", "matplotlib", "jinja2", "scipy", "onnx",
    "onnxruntime", "foolbox", "pyarrow", "diffusers", "nibabel",
}  # fmt: skip
FIGURES = ("FigureCanvas", "pyplot", ".savefig(", " Figure(")


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def unit(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(nodes: Iterator[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def points_up(here: str, name: str) -> bool:
    root, _, rest = name.partition(".")
    there = rest.split(".")[0]
    if root == "lightning":
        return here not in WITH_LIGHTNING
    own = root == "lightning_paf" and there in LAYER and there != here
    return not root or (own and LAYER[there] >= LAYER[here])


def long_parts(path: Path) -> Iterator[str]:
    if (length := len(path.read_text().splitlines())) > 400:
        yield f"{path} has {length} lines"
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1 - len((ast.get_docstring(node) or "").splitlines())
            if length > 40:
                yield f"{path}: {node.name} has {length} lines"


def long_first_lines(path: Path) -> Iterator[str]:
    """Docstrings of modules, classes, functions and attributes."""
    bodies = (getattr(node, "body", None) for node in ast.walk(parsed(path)))
    for statement in (statement for body in bodies if isinstance(body, list) for statement in body):
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            text = statement.value.value
            first = text.strip().partition("\n")[0] if isinstance(text, str) else ""
            if len(first) > 80:
                yield f"{path}:{statement.lineno} has {len(first)} characters: {first}"


def test_every_unit_has_a_layer():
    assert {unit(path) for path in FILES} - {"__init__"} <= LAYER.keys()


def test_imports_point_downwards():
    units = {path: unit(path) for path in FILES if unit(path) != "__init__"}
    wrong = {
        f"{path} ({here}) imports {name}"
        for path, here in units.items()
        for name in imports(ast.walk(parsed(path)))
        if points_up(here, name)
    }
    assert not wrong, "\n".join(sorted(wrong))


def test_heavy_libraries_are_imported_inside_functions():
    names = {path: imports(iter(parsed(path).body)) for path in FILES}
    wrong = {f"{path} imports {name}" for path in FILES for name in names[path] if name.split(".")[0] in HEAVY}
    assert not wrong, "\n".join(sorted(wrong))


def test_figures_are_opened_in_one_place():
    """One style, no state of pyplot, and atomic files."""
    sources = {path: path.read_text() for path in FILES if path != PACKAGE / "utils" / "figures.py"}
    wrong = [f"{path} has {word}; use utils.figures" for path in sources for word in FIGURES if word in sources[path]]
    assert not wrong, "\n".join(wrong)


def test_files_and_functions_are_short():
    wrong = [text for path in FILES for text in long_parts(path)]
    assert not wrong, "\n".join(wrong)


def test_first_lines_of_docstrings_are_short():
    wrong = [text for path in FILES for text in long_first_lines(path)]
    assert not wrong, "Docstrings must begin with a line of at most 80 characters:\n" + "\n".join(wrong)
