"""Shell completion of all commands and of the options of the training commands."""

import argparse
from collections.abc import Iterable
from typing import NoReturn

import shtab
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]  # a public name without `__all__`
from lightning.pytorch.cli import ArgsType, LightningArgumentParser

from lightning_paf import recipes
from lightning_paf.cli.training import SETTINGS, PafCLI


class _Built(Exception):  # carries the parser out of the constructor
    def __init__(self, parser: LightningArgumentParser) -> None:
        self.parser = parser


class _AllParsers(PafCLI):
    """Builder of the parsers of all training commands, which stops before parsing."""

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> NoReturn:
        """Raise the parser."""
        raise _Built(parser)


def script(shell: str, commands: Iterable[str]) -> str:
    """Return the completion script of `lightning-paf`.

    Args:
        shell: Name of the shell.
        commands: Other commands than the training commands.

    Raises:
        ValueError: The shell is not supported.
    """
    if shell not in shtab.SUPPORTED_SHELLS:
        raise ValueError(f"--print_shtab must be one of {', '.join(shtab.SUPPORTED_SHELLS)}, got {shell}. Pass bash.")
    try:
        _AllParsers(**SETTINGS, args=[])
    except _Built as built:
        trained = built.parser._subcommands_action._name_parser_map  # type: ignore[union-attr]
    parser = argparse.ArgumentParser("lightning-paf")
    below = parser.add_subparsers()
    for name, options in trained.items():
        _complete(below.add_parser(name, help=name), options)
    for name in commands:
        below.add_parser(name, help=name).add_argument("files", nargs="*").complete = shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell))


def _complete(parser: argparse.ArgumentParser, like: argparse.ArgumentParser) -> None:
    """Copy the options of a parser as plain ones, which do not resolve classes."""
    for action in like._actions:
        names = [name for name in action.option_strings if name not in ("-h", "--help")]
        if names:
            copied = parser.add_argument(*names, choices=action.choices, help=None)
            kind = recipes.kind_of(names[-1])
            if kind and not action.choices:
                copied.choices = [name.removeprefix(f"{kind}/") for name in recipes.names(f"{kind}/")]
            elif isinstance(action, ActionConfigFile):
                copied.choices = [name for name in recipes.names() if "/" in name]
            elif not action.choices:
                copied.complete = shtab.FILE  # type: ignore[attr-defined]
