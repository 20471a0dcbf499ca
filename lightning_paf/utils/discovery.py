"""Search for modules without importing them."""

import ast
from pathlib import Path


def modules_with(function: str, folder: Path) -> dict[str, str]:
    """List the modules in a folder that define a function.

    Names have hyphens and are sorted; values are the first lines of docstrings.
    """
    found = {}
    for path in sorted(folder.glob("*.py")):
        tree = ast.parse(path.read_text())
        if any(isinstance(node, ast.FunctionDef) and node.name == function for node in tree.body):
            found[path.stem.replace("_", "-")] = (ast.get_docstring(tree) or "").split("\n")[0]
    return found
