"""List the recipes that come with the package, each with its first line."""

import argparse

from lightning_paf import recipes


def main(args: list[str]) -> int:
    """Print `folder/stem` and the first comment of each recipe.

    Args:
        args: Words after the command.
    """
    parser = argparse.ArgumentParser("lightning-paf recipes", description=__doc__)
    parser.add_argument("pattern", nargs="?", default="", help="text that the names must contain, such as `paper/`")
    pattern = parser.parse_args(args).pattern
    found = recipes.names(pattern)
    if not found:
        raise ValueError(f"PATTERN must be part of a recipe's name, got {pattern!r}. Call `lightning-paf recipes`.")
    for name in found:
        print(f"{name}\n    {_first_line(name)}")
    return 0


def _first_line(name: str) -> str:
    with (recipes.FOLDER / f"{name}.yaml").open() as lines:
        return next(lines).lstrip("# ").rstrip()
