"""Options of evaluations that had another name in earlier versions."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

RENAMED = {"ledger": "state_dir", "receipt": "evidence"}
_OLD = "|".join(RENAMED)
_TYPED = re.compile(rf"--((?:val_attack|autoattack)\.(?:init_args\.)?)({_OLD})(?:=.*)?", re.DOTALL)
_SAVED = re.compile(rf"\b({_OLD})\b['\"]?:")


def with_new_names(words: Sequence[str]) -> list[str]:
    """Give the options in configuration files their new names.

    Args:
        words: A command and its options; each `--config` has a file or its content as the next word.

    Returns:
        The same words, with the content of configurations that use old names.

    Raises:
        ValueError: An old name was typed.
    """
    for word in words:
        if typed := _TYPED.fullmatch(word):
            slot, old = typed.groups()
            raise ValueError(f"--{slot}{old} is gone. Pass --{slot}{RENAMED[old]} instead.")
    configs = {number + 1 for number, word in enumerate(words) if word in ("-c", "--config")}
    return [_updated(word) if number in configs else word for number, word in enumerate(words)]


def _updated(config: str) -> str:
    """Return the content with new names, or the word itself."""
    is_file = "\n" not in config and Path(config).is_file()
    text = Path(config).read_text(errors="replace") if is_file else config
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
