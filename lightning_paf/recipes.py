"""Packaged recipes, found by short names from any directory."""

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
"""Folder of the recipes for each option that takes a part of one."""

_CONFIG = ("-c", "--config")
_FILE_ONLY = (*_CONFIG, "--data", "--trainer", "--model.speed")
"""Options that take a file or its content, but no class."""


def kind_of(option: str) -> str:
    """Folder of the recipes that an option takes by their stems; empty if none."""
    return _KINDS.get(option, "")


def names(pattern: str = "") -> list[str]:
    """List the recipes whose name `folder/stem` contains `pattern`."""
    found = sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.yaml"))
    return [name for name in found if pattern in name]


def find(name: str, kind: str = "") -> Path | None:
    """Find a packaged recipe.

    Args:
        name: `paper/resnet18_linf`, with or without `configs/` before and `.yaml` after it.
        kind: Folder of the recipes that the stem alone identifies, such as `trainer` for `gpu1`.

    Returns:
        Its file, or None if no recipe has this name.
    """
    stem = name.removeprefix("./").removeprefix("configs/").removesuffix(".yaml")
    known = names()
    return next((FOLDER / f"{found}.yaml" for found in (stem, f"{kind}/{stem}") if found in known), None)


def is_file(value: str) -> bool:
    """Return whether the value of an option is the path of a file."""
    try:
        return Path(value).is_file()
    except OSError:  # the content of a file, too long for a name
        return False


def content_of(value: str) -> str:
    """Return the content of a configuration that is a path or the content itself."""
    return Path(value).read_text(errors="replace") if is_file(value) else value


def located(name: str, kind: str = "") -> Path:
    """Find a file by its path, or a packaged recipe by its name.

    Raises:
        ValueError: Neither exists, or the file is not text.
    """
    recipe = Path(name) if is_file(name) else find(name, kind)
    if recipe is None:
        raise ValueError(f"The configuration must be a file or the name of a recipe, got {name}.{_hint(name, kind)}")
    try:
        with recipe.open(encoding="utf-8") as stream:
            text = "\0" not in stream.read(1024)
    except UnicodeDecodeError:
        text = False
    if not text:
        raise ValueError(f"The configuration must be a YAML file, got {name}, which is not text. Pass another file.")
    return recipe


def resolved(words: Sequence[str]) -> list[str]:
    """Replace the names of recipes on a command line by the paths of their files.

    An existing path has priority. The parser takes any other value for a class, except where the option takes files
    only or the value has a file's suffix.

    Args:
        words: The arguments of `lightning-paf`.

    Raises:
        ValueError: A file that must exist does not.
    """
    result = list(words)
    for index, word in enumerate(words):
        option, assigned, value = word.partition("=")
        if option not in _KINDS and option not in _CONFIG:
            continue
        if assigned:
            result[index] = f"{option}={_path_of(option, value)}"
        elif index + 1 < len(words):
            result[index + 1] = str(_path_of(option, words[index + 1]))
    return result


def _path_of(option: str, value: str) -> Path | str:
    if "\n" in value or ": " in value or value.lstrip().startswith(("{", "[")):  # the content of a file
        return value
    kind = kind_of(option)
    if option in _FILE_ONLY or value.endswith((".yaml", ".yml", ".json")):
        return located(value, kind)
    return value if is_file(value) else find(value, kind) or value


def _hint(name: str, kind: str) -> str:
    known = [*names(), *(recipe.removeprefix(f"{kind}/") for recipe in names(f"{kind}/") if kind)]
    near = difflib.get_close_matches(name.removeprefix("configs/").removesuffix(".yaml"), known, 3)
    similar = f" Did you mean {', '.join(near)}?" if near else ""
    if kind == "data":
        similar += " Pass --data.dataset npz for your own images."
    return f"{similar} Run `lightning-paf recipes` for a list."
