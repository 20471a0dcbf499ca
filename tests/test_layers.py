"""Imports point downwards, and files stay readable. Pure `ast`, no torch."""

import ast
from pathlib import Path

import pytest

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
    "timm",
    "torchvision",
    "pyautoattack",
    "autoattack",
    "sklearn",
    "matplotlib",
    "jinja2",
    "scipy",
    "onnx",
    "onnxruntime",
    "foolbox",
    "pyarrow",
}


def unit(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            found.append(node.module)
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    here = unit(path)
    if here == "__init__":
        return
    for name in imports(ast.parse(path.read_text())):
        root, _, rest = name.partition(".")
        if root == "lightning":
            assert here in WITH_LIGHTNING, f"{path} imports lightning"
        there = rest.split(".")[0]
        if root == "lightning_paf" and there in LAYER and there != here:
            assert LAYER[there] < LAYER[here], f"{path} ({here}) imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_libraries_are_imported_where_they_are_used(path):
    for name in top_imports(path):
        assert name.split(".")[0] not in HEAVY, f"{path} imports {name} at the top; import it inside the function"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_figures_are_opened_in_one_place(path):
    """One style, no state of pyplot, and no half-written file."""
    words = ("FigureCanvas", "pyplot", ".savefig(", " Figure(")
    if path != PACKAGE / "utils" / "figures.py":
        assert not [word for word in words if word in path.read_text()], "use utils.figures"


def top_imports(path: Path) -> list[str]:
    body = ast.parse(path.read_text()).body
    return [name for node in body if isinstance(node, ast.Import | ast.ImportFrom) for name in imports(node)]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_stay_readable(path):
    source = path.read_text()
    assert len(source.splitlines()) <= 400
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            lines = node.end_lineno - node.lineno + 1 - len((ast.get_docstring(node) or "").splitlines())
            assert lines <= 40, f"{node.name} has {lines} lines"


def test_every_unit_has_a_layer():
    assert {unit(path) for path in FILES} - {"__init__"} <= LAYER.keys()
