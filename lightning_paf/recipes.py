"""Recipes that come with the package, found by short names from any directory."""

import difflib
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent / "configs"

_KINDS = {
    "--data": "data",
    "--trainer": "trainer",
    "--trainer.logger": "logger",
    "--model.net": "net",
    "--model.activation": "activation",
    "--model.attack": "attack",
    "--model.speed": "speed",
    "--checkpoint": "checkpoint",
    "--val_attack": "eval",
    "--autoattack": "eval",
}
"""Options that take a part of a recipe, and the folder of these parts."""

_WHOLE = ("-c", "--config")
_FILES = (*_WHOLE, "--data", "--trainer", "--model.speed")
"""Options that take a file or its content, and never a class."""


def kind_of(option: str) -> str:
    """Folder of the recipes that an option takes by their stems, or nothing."""
    return _KINDS.get(option, "")


def names(pattern: str = "") -> list[str]:
    """List the recipes as `folder/stem`, those that contain a text."""
    found = sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.yaml"))
    return [name for name in found if pattern in name]


def find(name: str, kind: str = "") -> Path | None:
    """Find a recipe.

    Args:
        name: `paper/resnet18_linf`, with or without `configs/` before and `.yaml` after it.
        kind: Folder of the recipes that may be named by their stem alone, such as `trainer` for `gpu1`.

    Returns:
        The packaged file, or None where there is none of this name.
    """
    stem = name.removeprefix("./").removeprefix("configs/").removesuffix(".yaml")
    known = names()
    for candidate in (stem, f"{kind}/{stem}"):
        if candidate in known:
            return FOLDER / f"{candidate}.yaml"
    return None


def located(name: str, kind: str = "") -> Path:
    """Find a file that a user named: the path itself, or a recipe.

    Raises:
        ValueError: There is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    recipe = find(name, kind)
    if recipe is None:
        raise ValueError(f"{name} must be a file or a recipe, but neither exists.{_hint(name, kind)}")
    return recipe


def resolved(words: Sequence[str]) -> list[str]:
    """Replace the names of recipes on a command line by the paths of their files.

    An existing path wins. Any other value that names no recipe is left to the parser as a class, except where the
    option takes files only or the value is written as a path.

    Args:
        words: The words after `lightning-paf`.

    Raises:
        ValueError: A file that must exist does not.
    """
    result = list(words)
    for place, word in enumerate(words):
        option, assigned, value = word.partition("=")
        if option not in _KINDS and option not in _WHOLE:
            continue
        if assigned:
            result[place] = f"{option}={_path_of(option, value)}"
        elif place + 1 < len(words):
            result[place + 1] = str(_path_of(option, words[place + 1]))
    return result


def _path_of(option: str, value: str) -> Path | str:
    if "\n" in value or ": " in value or value.lstrip().startswith(("{", "[")):  # the content itself
        return value
    kind = kind_of(option)
    if option in _FILES or value.endswith((".yaml", ".yml", ".json")):
        return located(value, kind)
    return value if Path(value).is_file() else find(value, kind) or value


def _hint(name: str, kind: str) -> str:
    known = [*names(), *(recipe.removeprefix(f"{kind}/") for recipe in names(f"{kind}/") if kind)]
    near = difflib.get_close_matches(name.removeprefix("configs/").removesuffix(".yaml"), known, 3)
    similar = f" Did you mean {', '.join(near)}?" if near else ""
    if kind == "data":
        similar += " Pass --data.dataset npz for your own images."
    return f"{similar} Call `lightning-paf recipes` for a list."
