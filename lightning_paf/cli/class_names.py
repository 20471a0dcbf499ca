"""Names of classes on the command line, and suggestions for mistyped ones."""

import argparse
import difflib
import inspect
import re
from collections.abc import Mapping, Sequence
from types import ModuleType

from lightning_paf.recipes import content_of, is_file, kind_of, names

_TASK = re.compile(r"^(?:model:\s*\{?\s*)?class_path:\s*[\"']?([\w.]*)", re.MULTILINE)
_NOISE = re.compile(
    r"\s*(-?\s*Does not validate against any|Subtypes: |Errors:$|Given value type: |Given value: (NestedArg|Namespace)|"
    r"- Expected a <class 'NoneType'>|- Expected a path but |(- )?Subclass types expect|- a (class path|dict) )"
)
"""Lines of a parser error that list all possible types, and internal values."""
_NO_ATTACK = re.compile(
    r'Parser key "(val_attack|autoattack)":.*(are required: attack|Parser key "attack": Expected an instantiatable)',
    re.DOTALL,
)
"""Parser error about an evaluation whose attack is missing."""
_HINTS = {
    r"Expected a <class 'tuple'>": "Pass a list in brackets, such as '[15, 25]'.",  # once, in the innermost class
    r"No module named '\w+'|file \S+\.py: ": "Pass a class of FILE.py as FILE.CLASS, and set PYTHONPATH to its folder: "
    "PYTHONPATH=. lightning-paf ...",
    r"required: .*model\.net": "Pass a recipe, such as -c demo/digits, or each of --model.net, --model.attack and "
    "--model.objective.",
}
"""Hints for errors of the parser that contain a pattern."""
_UNKNOWN = "names no known class"
_REMOVED = {"BIM": "PGD with start=none, step_size=1/255 and steps=10 (at eps=8/255) is the same attack."}
"""Replacements of the classes of earlier versions."""


def subclasses(*bases: type) -> set[type]:
    """Return some classes and all their subclasses."""
    found, waiting = set(bases), list(bases)
    while waiting:
        new: set[type] = set(waiting.pop().__subclasses__()) - found
        found |= new
        waiting += new
    return found


def named_task(words: Sequence[str]) -> str | None:
    """Return the class of `--model CLASS`; None if options name none.

    Args:
        words: Options; each `--config` has a file or its content as its value.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-c", "--config", action="append", default=[])
    parser.add_argument("--model", action="append", default=[])
    found = parser.parse_known_args(words)[0]
    texts = map(content_of, (*found.config, *found.model))
    classes = [value for value in found.model if not is_file(value) and value.replace(".", "").isidentifier()]
    classes = [match[1] for text in texts for match in _TASK.finditer(text)] + classes
    return classes[-1] if classes else None


def suggestion(message: str, plug_ins: Mapping[str, type | ModuleType]) -> str:
    """List the known classes, or the recipes of an empty slot, for a parser error.

    Args:
        message: Error of the parser.
        plug_ins: For each argument the base of its classes, or the module that lists them in `__all__`.

    Returns:
        Text to append to the message; empty for other errors.
    """
    for pattern, hint in _HINTS.items():
        if re.search(pattern, message):
            return f"\n{hint}"
    recipes = _recipes_of_slot(message)
    missing = re.search(r'Parser key "(\w+)": Expected an instantiatable class, but [\w.]+ is abstract', message)
    if missing and missing[1] in plug_ins:
        known = ", ".join(_concrete_names(plug_ins[missing[1]]))
        return f"\n{missing[1]} must be a concrete class, given before its arguments. Known: {known}.{recipes}"
    # The last key, that of the innermost class.
    found = re.search(r'.*Parser key "([\w.]+)":.*Expected a dot import path string: ([\w.]+)', message, re.DOTALL)
    found = found or re.search(r"NestedArg\(key='([\w.]+)', val='([\w.]+)'\)", message)  # of an optional argument
    argument = found[1].rpartition(".")[2] if found else ""
    if found is None or argument not in plug_ins or _UNKNOWN in message:  # reported for an inner class
        return recipes
    name = found[2].rpartition(".")[2]
    if replacement := _REMOVED.get(name):
        return f"\n{argument}={found[2]} was removed: {replacement}"
    classes = _concrete_names(plug_ins[argument])
    if name in classes:  # another error
        return ""
    near = difflib.get_close_matches(found[2], classes, 1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"\n{argument}={found[2]} {_UNKNOWN}.{hint} Known: {', '.join(classes)}."


def shortened(message: str) -> str:
    """Reduce a parser error about several possible types to one line."""
    lines = [line for line in message.splitlines() if not _NOISE.match(line)]
    text = " ".join(" ".join(lines).split()).replace(": - ", ": ").replace(" - ", ", ")
    return re.sub(r"a <class '(?:\w+\.)*(\w+)'>", r"\1", text).replace("a typing.Literal", "one of ")


def _recipes_of_slot(message: str) -> str:
    """List the recipes for an evaluation without an attack; empty for other errors."""
    if not (slot := _NO_ATTACK.search(message)):
        return ""
    option = f"--{slot[1]}"
    known = ", ".join(name.rpartition("/")[2] for name in names(f"{kind_of(option)}/"))
    return f"\nPass {option} RECIPE before the options of the evaluation, one of {known}."


def _concrete_names(base: type | ModuleType) -> list[str]:
    if isinstance(base, ModuleType):
        return sorted(name for name in base.__all__ if inspect.isclass(getattr(base, name)))
    return sorted(cls.__name__ for cls in subclasses(base) if not inspect.isabstract(cls))
