"""List the recipes that come with the package, each with its first line."""

from lightning_paf import recipes
from lightning_paf.utils.arguments import command_parser


def main(argv: list[str]) -> int:
    """Print `folder/stem` and the first comment of each recipe."""
    parser = command_parser("recipes", __doc__)
    parser.add_argument("pattern", nargs="?", default="", help="text that the names must contain, such as `paper/`")
    pattern = parser.parse_args(argv).pattern
    found = recipes.names(pattern)
    if not found:
        raise ValueError(
            f"PATTERN must occur in the name of a recipe, got {pattern!r}. Run `lightning-paf recipes` for all names."
        )
    for name in found:
        with (recipes.FOLDER / f"{name}.yaml").open() as lines:
            print(f"{name}\n    {next(lines).lstrip('# ').rstrip()}")
    return 0
