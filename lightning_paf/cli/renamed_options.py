"""New names for options of earlier versions."""

import re
from collections.abc import Sequence
from typing import Any

import yaml

from lightning_paf.recipes import content_of

RENAMED = {"ledger": "state_dir", "receipt": "evidence"}
_OLD = "|".join(RENAMED)
_TYPED = re.compile(rf"--((?:val_attack|autoattack)\.(?:init_args\.)?)({_OLD})(?:=.*)?", re.DOTALL)
_SAVED = re.compile(rf"\b({_OLD})\b['\"]?:")


def with_new_names(words: Sequence[str]) -> list[str]:
    """Rename options in configuration files.

    Args:
        words: A command and its options; each `--config` is followed by a file or its content.

    Returns:
        The same words; configurations with old names are replaced by their new content.

    Raises:
        ValueError: An old name is on the command line.
    """
    for word in words:
        if typed := _TYPED.fullmatch(word):
            slot, old = typed.groups()
            raise ValueError(f"--{slot}{old} was renamed. Pass --{slot}{RENAMED[old]}.")
    configs = {number + 1 for number, word in enumerate(words) if word in ("-c", "--config")}
    return [_updated(word) if number in configs else word for number, word in enumerate(words)]


def _updated(config: str) -> str:
    """Return the content with new names, or the unchanged word."""
    text = content_of(config)
    if not _SAVED.search(text):
        return config
    try:
        return str(yaml.safe_dump(_renamed(yaml.safe_load(text)), sort_keys=False))
    except yaml.YAMLError:  # the parser reports it
        return config


def _renamed(value: Any) -> Any:
    if isinstance(value, list):
        return [_renamed(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    return {RENAMED.get(name, name): _renamed(inner) for name, inner in value.items()}
