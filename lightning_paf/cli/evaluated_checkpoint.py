"""Resolution of the checkpoint to evaluate, and of its configuration."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace

from lightning_paf.cli.saved_config import config_words
from lightning_paf.runs.checkpoints import check_checkpoint, newest_checkpoint
from lightning_paf.runs.config_file import is_saved, run_of
from lightning_paf.runs.folder import NEWEST
from lightning_paf.runs.identity import RUN, read_identity
from lightning_paf.runs.resume_check import CONFIG
from lightning_paf.runs.weights_origin import WeightsOrigin

WORDS_FOR_CHECKPOINTS = (*NEWEST, "best", "hpc")
UNTRAINED_HELP = "evaluate the starting weights, without a checkpoint; results are marked `untrained`"
FRESH_HELP = "remove the records of this test in its state folder first, such as those from others"


def arrange(words: Sequence[str]) -> list[str]:
    """Move configuration files before options, which take precedence in any order.

    `ckpt_path` and `run` of a saved configuration are ignored: the run is the folder of the file, which can have been
    moved. Without a saved `run`, a new training still gets a new folder.
    Without `--config`, an evaluation reads the configuration of the checkpoint's run.

    Raises:
        ValueError: The checkpoint is missing or damaged, or the configuration of its run is missing or not trusted.
    """
    command, (typed, rest) = words[0], _split(words)
    if {"-h", "--help"} & set(rest):
        return list(words)
    evaluates = command != "fit"
    new = not evaluates and typed.ckpt_path not in NEWEST
    configs = [word for config in typed.config for word in ("--config", config, *_overrides(config, new))]
    found = _config_of_run(command, typed, "--untrained" in rest) if evaluates and not typed.config else None
    described = found or typed.config or any(word.startswith("--model") for word in rest)
    if evaluates and typed.ckpt_path and not described:
        raise ValueError(
            f"The configuration of --ckpt_path {typed.ckpt_path} must exist, got no {CONFIG} in its run folder. Pass "
            f"-c RUN/{CONFIG}."
        )
    if found is not None:
        print(f"Configuration of the checkpoint: {found}", file=sys.stderr)  # noqa: T201
        configs = [*config_words(found, words), "--ckpt_path=null", f"--run={found.parent}"]
    named = [f"--{name}={value}" for name, value in (("ckpt_path", typed.ckpt_path), ("run", typed.run)) if value]
    return [command, *configs, *rest, *named]


def evaluated_checkpoint(command: str, checkpoint: str | None, run: Path | None, untrained: bool) -> str | None:
    """Find the checkpoint file that a command evaluates.

    Args:
        command: `test`, `validate` or `predict`.
        checkpoint: A file, `last`, `auto`, `best`, or None.
        run: Folder in which the words are resolved.
        untrained: Whether to evaluate the starting weights.

    Returns:
        The file; None for the starting weights.

    Raises:
        ValueError: The checkpoint does not exist or holds starting weights; both or none of the options are given.
    """
    if untrained and checkpoint is not None:
        raise ValueError(
            f"--untrained must be passed without a checkpoint, got --ckpt_path {checkpoint}. Pass one of the two."
        )
    if untrained:
        return None
    if checkpoint is None:
        raise _no_checkpoint(command)
    if checkpoint in WORDS_FOR_CHECKPOINTS:
        found = checkpoint_in(run, checkpoint)
        print(f"Checkpoint: {found}, {WeightsOrigin.of_checkpoint(found)}", file=sys.stderr)  # noqa: T201
        checkpoint = str(found)
    check_checkpoint(checkpoint)
    check_trained(Path(checkpoint))
    return checkpoint


def check_trained(checkpoint: Path) -> None:
    """Check that a checkpoint was not saved before the first step of a training.

    Raises:
        ValueError: The checkpoint holds starting weights.
    """
    content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    if content.get("optimizer_states") and content.get("global_step") == 0:
        raise ValueError(
            f"An evaluated checkpoint must hold trained weights, got {checkpoint} of step 0. Pass a later one, or "
            "--untrained to `test`, `validate` or `predict`."
        )


def evaluated_weights(checkpoint: str | None, model: Mapping[str, Any]) -> WeightsOrigin:
    """Return the origin of the evaluated weights.

    Args:
        checkpoint: File of the weights; None for starting weights.
        model: Configuration of the module.
    """
    if checkpoint is not None:
        return WeightsOrigin.of_checkpoint(Path(checkpoint))
    init, net = model.get("init"), model.get("net") or {}
    if init is not None and Path(init).is_file():
        return WeightsOrigin.of_starting_weights(f"weights of --model.init {Path(init).name}")
    arguments = {**(net.get("init_args") or {}), **(net.get("dict_kwargs") or {})}
    return WeightsOrigin.of_starting_weights("pretrained weights" if arguments.get("pretrained") else "random weights")


def without_pretrained(net: Namespace | None) -> None:
    """Switch off pretrained weights where those of a checkpoint follow.

    A network of a library then loads no file, which can be gone, and downloads nothing.

    Args:
        net: Configuration of the network, changed in place; None for none.
    """
    while isinstance(net, Namespace):
        arguments = net.get("init_args") or {}
        for options in (arguments, net.get("dict_kwargs") or {}):
            if options.get("pretrained"):
                options["pretrained"] = False
            if "orchvision" in str(net.get("class_path")) and options.get("weights") is not None:
                options["weights"] = None
        net = arguments.get("net")


def _split(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Separate the values of `--config`, `--ckpt_path` and `--run` from other words."""
    parser = argparse.ArgumentParser(f"lightning-paf {words[0]}", usage=f"lightning-paf {words[0]}", add_help=False)
    parser.add_argument("-c", "--config", action="append", default=[])
    parser.add_argument("--ckpt_path")
    parser.add_argument("--run")
    return parser.parse_known_args(words[1:])


def _config_of_run(command: str, typed: argparse.Namespace, untrained: bool) -> Path | None:
    """Return the configuration of the checkpoint's run or of `--run`, if there is one."""
    checkpoint, run = (None if value == "null" else value for value in (typed.ckpt_path, typed.run))
    if checkpoint is None and not untrained:
        raise _no_checkpoint(command)
    if checkpoint is None or checkpoint in WORDS_FOR_CHECKPOINTS:
        if checkpoint is not None and run is None:
            raise _no_run(checkpoint)
        folder = None if run is None else Path(run)
    else:
        check_checkpoint(checkpoint)  # first, since the configuration of a newer version can have unknown options
        folder = run_of(Path(checkpoint))
    return folder / CONFIG if folder is not None and (folder / CONFIG).is_file() else None


def _overrides(config: str, new: bool) -> list[str]:
    """Return options that override `ckpt_path` and `run` of a saved configuration."""
    if not is_saved(Path(config)):
        return []
    has_run = not new or "\nrun: null\n" not in Path(config).read_text(errors="replace")
    return ["--ckpt_path=null", *[f"--run={Path(config).parent}"] * has_run]


def checkpoint_of(path: Path) -> Path:
    """Return a checkpoint, or the newest one of a run folder.

    Raises:
        ValueError: The folder holds none.
    """
    return checkpoint_in(path) if path.is_dir() else path


def checkpoint_in(run: Path | None, word: str = "last") -> Path:
    """Find the checkpoint of a run for `last`, `auto` or `best`.

    Raises:
        ValueError: There is none, or no run.
    """
    if word not in (*NEWEST, "best"):
        raise ValueError(f"--ckpt_path must be a file, last, auto or best, got {word}. Pass RUN/checkpoints/FILE.ckpt.")
    if run is None:
        raise _no_run(word)
    files = sorted(path for path in run.rglob("*.ckpt") if not _in_nested_run(path, run))
    run_id = read_identity(run).get(RUN)
    if len(files) == 1:  # possibly weights only, written by `import-weights`
        check_checkpoint(str(files[0]))
    newest = files[0] if len(files) == 1 else newest_checkpoint({path.parent for path in files}, run_id)
    found = newest if newest is None or word in NEWEST else _best(newest, files)
    if found is None:
        kind = "a checkpoint" if newest is None else "a checkpoint recorded as best by a monitored ModelCheckpoint"
        raise ValueError(f"{run} must hold {kind}, but there is none. Pass a checkpoint file, or another run.")
    return found


def _in_nested_run(path: Path, run: Path) -> bool:
    """Return whether a file belongs to another run, in a subfolder of this one."""
    return any((folder / CONFIG).is_file() for folder in path.parents if folder != run and folder.is_relative_to(run))


def _best(newest: Path, files: Sequence[Path]) -> Path | None:
    """Return the best of the existing checkpoints, as recorded in the newest one."""
    callbacks = torch.load(newest, map_location="cpu", weights_only=True, mmap=True).get("callbacks", {})
    tails = [
        _below(Path(state["best_model_path"]), Path(state.get("dirpath") or ""))
        for state in callbacks.values()
        if isinstance(state, Mapping) and state.get("best_model_path") and state.get("monitor") not in (None, "step")
    ]
    found = {path for path in files for tail in tails if path.parts[-len(tail.parts) :] == tail.parts}
    if len(found) > 1:
        names = ", ".join(map(str, sorted(found)))
        raise ValueError(f"--ckpt_path best must mean one checkpoint, got {names}. Pass one of the files.")
    return next(iter(found), None)


def _below(path: Path, folder: Path) -> Path:
    return path.relative_to(folder) if path.is_relative_to(folder) else Path(path.name)


def _no_checkpoint(command: str) -> ValueError:
    return ValueError(
        f"{command} needs a checkpoint, got none. Pass --ckpt_path FILE, or --ckpt_path last or best with --run RUN; "
        "or --untrained to evaluate the starting weights."
    )


def _no_run(word: str) -> ValueError:
    return ValueError(
        f"--ckpt_path {word} needs a run folder, got none. Pass --run RUN, -c RUN/config.yaml, or --ckpt_path FILE."
    )
