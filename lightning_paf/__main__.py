"""Entry point. Training commands run in LightningCLI, all others in `commands/`."""

import os
import sys

# `python -m` would first import from the working folder, which can hold untrusted files; the console script does not.
# A working folder that contains the package itself, such as a checkout, is trusted.
_HERE = os.path.realpath(f"{__file__}/../..")
if __name__ == "__main__" and not sys.flags.safe_path and os.path.realpath(sys.path[0]) != _HERE:
    del sys.path[0]

import contextlib
import difflib
import importlib
import signal
import textwrap
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

from lightning_paf import __version__
from lightning_paf.cli.help_page import SUMMARIES, page
from lightning_paf.utils.discovery import modules_with
from lightning_paf.utils.output import unbroken_output
from lightning_paf.utils.process import EXIT_STATUS
from lightning_paf.utils.terminal import printable

TRAINING = SUMMARIES
"""Summaries of the commands that LightningCLI runs."""
_FULL_HELP = ("--help.full", "--help-full")
_COMPLETION = "--print_shtab"
_GROUPS = {
    "train": (*(name for name in TRAINING if name == "fit"), "demo", "reproduce", "synthesize", "synthesis-report"),
    "evaluate": (
        *(name for name in TRAINING if name != "fit"),
        *("certify", "compare", "curve", "sanity-check", "verify", "report"),
    ),
    "analyze": ("analyze",),
}
"""Commands in the order of the usage text; all others are tools."""
REMOVED = {
    "doctor": "doctor was removed. Run `lightning-paf sanity-check --ckpt CKPT`, which takes the same options.",
    "pool": "pool was removed. Pass `--data.synthetic FOLDER`, which also reads the files of an existing pool.",
    "selftest": "selftest was removed. Run `pytest tests/attacks/test_oracles.py`, which checks the attacks on models "
    "whose robust accuracy is known.",
    "protected": "protected was removed. Run `lightning-paf analyze protection`, which takes the same options.",
} | {
    name: f"{name} was removed. Run `lightning-paf analyze {name}`, which takes the same options."
    for name in ("concentration", "ladder", "logistic", "min-max", "saliency")
}
"""Error messages for commands of earlier versions."""
_EXAMPLES = """Examples:
  lightning-paf demo
  lightning-paf fit -c demo/digits --data digits --run runs/a
  lightning-paf test --ckpt_path runs/a/checkpoints/last.ckpt

Options of one command: lightning-paf COMMAND --help
Shell completion:       eval "$(lightning-paf --print_shtab bash)"
Version:                lightning-paf --version"""
_PACKAGE = Path(__file__).parent
_INPUT_ERRORS = (ValueError, TypeError, OSError)
_DEBUG_HINT = " (Set LIGHTNING_PAF_DEBUG=1 for the traceback.)"


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments; by default those of the command line.

    Returns:
        Exit status: 0; 1 after an error of this package; 2 after an unknown or removed command; 130 after Ctrl-C.
        Errors of LightningCLI's parser exit with 2, a training stopped by a signal or Ctrl-C with 75 (resume it).
    """
    with unbroken_output():
        return _run([_expanded(word) for word in (sys.argv[1:] if argv is None else argv)])


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())  # noqa: T201
        return 0
    if words[0] == "--version":
        print(__version__)  # noqa: T201
        return 0
    command, rest = words[0], words[1:]
    try:
        if _COMPLETION in words[:2]:
            return _print_completion(words[words.index(_COMPLETION) + 1 :])
        if command in TRAINING:
            if {"-h", "--help"} & set(rest):
                print(page(command))  # noqa: T201
                return 0
            words = ["--help" if word in _FULL_HELP else word for word in words]
            with _early_signals() if command in ("fit", "test") else contextlib.nullcontext():
                from lightning_paf.cli.training import train

                train(words)
            return 0
        if command in _commands():
            status: int = importlib.import_module(f"lightning_paf.commands.{command.replace('-', '_')}").main(rest)
            return status
    except Exception as error:
        return _report(error)
    except KeyboardInterrupt:  # outside of training steps, see `StopOnSignal`
        print(f"lightning-paf: {command} was interrupted", file=sys.stderr)  # noqa: T201
        return 130
    print(f"lightning-paf: {REMOVED.get(command) or _unknown(command)}", file=sys.stderr)  # noqa: T201
    return 2


def _unknown(command: str) -> str:
    known = [*TRAINING, *_commands()]
    near = difflib.get_close_matches(command, known, 1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"unknown command {command!r}.{hint} Known: {', '.join(known)}."


@contextlib.contextmanager
def _early_signals() -> Iterator[None]:
    """Prepare for the signals of a cluster until `StopOnSignal` handles them.

    SIGUSR1, which would end the process, is blocked. SIGTERM exits with the status of a stopped training: restart.
    """
    if not hasattr(signal, "pthread_sigmask") or threading.current_thread() is not threading.main_thread():
        yield
        return
    mask, handler = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1}), signal.getsignal(signal.SIGTERM)
    if handler == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_STATUS))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGTERM, handler)


def _commands() -> dict[str, str]:
    return modules_with("main", _PACKAGE / "commands")


def _usage() -> str:
    """List all commands in groups, at most 80 columns wide."""
    rows = {**TRAINING, **_commands()}
    grouped = {name for names in _GROUPS.values() for name in names}
    width = max(map(len, rows)) + 4
    lines = ["usage: lightning-paf COMMAND [options]", "", "Train and evaluate adversarially robust image classifiers."]
    for group, names in {**_GROUPS, "tools": tuple(name for name in rows if name not in grouped)}.items():
        lines += ["", f"{group}:"]
        for name in (name for name in names if name in rows):
            text = textwrap.wrap(rows[name], 80 - width)
            lines += [f"  {name}".ljust(width) + text[0], *(" " * width + line for line in text[1:])]
    return "\n".join([*lines, "", _EXAMPLES])


def _print_completion(words: list[str]) -> int:
    from lightning_paf.cli.completion import script

    print(script(words[0] if words else "", _commands()))  # noqa: T201
    return 0


def _expanded(word: str) -> str:
    """Expand `~` in `--option=~/path`, as shells do for a separate word only."""
    option, _, value = word.partition("=")
    if not option.startswith("--") or not value.startswith("~/"):
        return word
    return f"{option}={Path.home()}{value[1:]}"


def _report(error: Exception) -> int:
    """Print an error of the input without a traceback.

    These are the errors of this package, of the file system, and of libraries about a configuration. Any other error is
    a bug and is raised.
    """
    if isinstance(error, OSError) and error.filename and not os.environ.get("LIGHTNING_PAF_DEBUG"):
        reason = f"{error.filename} cannot be used: {error.strerror}. Check the path and its permissions."
        print(f"lightning-paf: error: {printable(reason)}", file=sys.stderr)  # noqa: T201
        return 1
    ours: BaseException | None = error
    # The parser wraps errors of optional classes.
    while ours is not None and not (isinstance(ours, _INPUT_ERRORS) and _raised_here(ours)):
        ours = ours.__cause__
    if os.environ.get("LIGHTNING_PAF_DEBUG") or (
        ours is None and not isinstance(error, OSError) and not _while_configured(error)
    ):
        raise error
    text = ours or f"{type(error).__name__}: {' '.join(str(error).split())}{_DEBUG_HINT}"
    lines = map(printable, str(text).split("\n"))
    print("\n".join([f"lightning-paf: error: {next(lines)}", *lines]), file=sys.stderr)  # noqa: T201
    return 1


def _raised_here(error: BaseException) -> bool:
    return Path(traceback.extract_tb(error.__traceback__)[-1].filename).is_relative_to(_PACKAGE)


def _while_configured(error: BaseException) -> bool:
    """Return whether a library refused a configuration, before the first step."""
    frames = traceback.extract_tb(error.__traceback__)
    configured = any(frame.name == "train" and Path(frame.filename).is_relative_to(_PACKAGE) for frame in frames)
    functions = {frame.name for frame in frames}
    started = "_run_stage" in functions and not functions & {"_run_sanity_check", "setup_data"}
    return configured and not started and not _raised_here(error)


if __name__ == "__main__":
    sys.exit(main())
