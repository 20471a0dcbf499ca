"""`lightning-paf` and `python -m lightning_paf`: training commands go to LightningCLI, the others to `commands/`."""

import os
import sys

# `python -m` would import from the working folder first, where anybody's files may lie; the console script does not.
# Where the package itself comes from the working folder, as in a checkout, everything there is trusted.
_HERE = os.path.realpath(f"{__file__}/../..")
if __name__ == "__main__" and not sys.flags.safe_path and os.path.realpath(sys.path[0]) != _HERE:
    del sys.path[0]

import contextlib
import difflib
import importlib
import signal
import traceback
from collections.abc import Iterator
from pathlib import Path

from lightning_paf import __version__
from lightning_paf.utils.discovery import modules_with

TRAINING = {
    "fit": "train, e.g. fit -c configs/paper/resnet18_linf.yaml --data.root DATA --run runs/pssilu",
    "validate": "clean and robust accuracy on the validation set",
    "test": "clean and robust accuracy on the test set, e.g. test --ckpt_path runs/pssilu/checkpoints/last.ckpt",
    "predict": "write class probabilities of the test set",
}
GONE = {
    "doctor": "doctor is now called sanity-check: `lightning-paf sanity-check --ckpt CKPT`, with the same options.",
    "pool": "pool is gone: `--data.synthetic FOLDER` reads the files of a folder, those of a written pool included.",
    "selftest": "selftest is gone: `pytest tests/attacks/test_oracles.py` checks the attacks on models whose robust "
    "accuracy is known.",
    "protected": "protected is gone: `lightning-paf analyze protection` takes its options.",
} | {
    name: f"{name} is gone: `lightning-paf analyze {name}` takes its options."
    for name in ("concentration", "ladder", "logistic", "min-max", "saliency")
}
"""Answers to the commands of earlier versions; each names the replacement."""
_PACKAGE = Path(__file__).parent


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Words after the program's name; by default those of the command line.

    Returns:
        Exit status: 0, or 1 after an error of ours, or 2 after a command that is unknown or gone. Errors of the
        command-line parser exit with 2, and a training that SIGTERM or SIGUSR1 has stopped with 75: it wants to be
        continued.
    """
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())  # noqa: T201
        return 0
    if words[0] == "--version":
        print(__version__)  # noqa: T201
        return 0
    command, rest = words[0], words[1:]
    try:
        if command in TRAINING:
            with _patient_start() if command in ("fit", "test") else contextlib.nullcontext():
                from lightning_paf.cli.training import train

                train(words)
            return 0
        if command in _commands():
            status: int = importlib.import_module(f"lightning_paf.commands.{command.replace('-', '_')}").main(rest)
            return status
    except (ValueError, TypeError, OSError) as error:
        return _report(error)
    print(f"lightning-paf: {GONE.get(command) or _unknown(command)}", file=sys.stderr)  # noqa: T201
    return 2


def _unknown(command: str) -> str:
    known = [*TRAINING, *_commands()]
    near = difflib.get_close_matches(command, known, 1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"unknown command {command!r}.{hint} Known: {', '.join(known)}."


@contextlib.contextmanager
def _patient_start() -> Iterator[None]:
    """Let SIGUSR1 wait until `StopOnSignal` listens; before, it would end the process, on one rank of several maybe."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _commands() -> dict[str, str]:
    return modules_with("main", _PACKAGE / "commands")


def _usage() -> str:
    rows = {**TRAINING, **_commands()}
    width = max(map(len, rows)) + 2
    table = "\n".join(f"  {name:{width}}{text}" for name, text in rows.items())
    return (
        "usage: lightning-paf COMMAND [options]     (also: python -m lightning_paf)\n\n"
        "Adversarially robust image classifiers with parametric activation functions.\n\n"
        f"{table}\n\nlightning-paf COMMAND --help lists the options of one command."
    )


def _report(error: Exception) -> int:
    """Print one of our own errors without a traceback; anything else is a bug and keeps it."""
    ours: BaseException | None = error
    # The parser wraps an error of a class that may also be null into a list of what it tried.
    while ours is not None and not _raised_here(ours):
        ours = ours.__cause__
    if ours is None or os.environ.get("LIGHTNING_PAF_DEBUG"):
        raise error
    print(f"lightning-paf: error: {ours}", file=sys.stderr)  # noqa: T201
    return 1


def _raised_here(error: BaseException) -> bool:
    return Path(traceback.extract_tb(error.__traceback__)[-1].filename).is_relative_to(_PACKAGE)


if __name__ == "__main__":
    sys.exit(main())
