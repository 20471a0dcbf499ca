"""Modules found by the function that they define, without importing them."""

import ast
from pathlib import Path


def modules_with(function: str, folder: Path) -> dict[str, str]:
    """First docstring line of every module of a folder that defines a function, by name with hyphens, sorted."""
    found = {}
    for path in sorted(folder.glob("*.py")):
        tree = ast.parse(path.read_text())
        if any(isinstance(node, ast.FunctionDef) and node.name == function for node in tree.body):
            found[path.stem.replace("_", "-")] = (ast.get_docstring(tree) or "").split("\n")[0]
    return found
