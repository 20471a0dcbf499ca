"""Convert a checkpoint of another project to a run for `test` and other commands."""

import argparse
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_paf.runs.status import IMPORTED
from lightning_paf.utils.arguments import command_parser

if TYPE_CHECKING:
    from torch import nn

    from lightning_paf.cli.training import PafCLI
    from lightning_paf.interop import CheckpointFile, KeyMap, Statistics, WeightSet
    from lightning_paf.interop.checkpoint_file import Which
    from lightning_paf.interop.zoo import ZooEntry

DEFAULTS = (
    *("--autoattack", "RobustEval", "--autoattack.name", "autoattack", "--autoattack.every_n_epochs", "0"),
    *("--autoattack.attack", "AutoAttack", "--model.attack", "PGD", "--model.objective", "AdversarialCE"),
    *("--data.real_fraction", "1", "--model.normalize", "false"),
)
"""Options of `fit` that the configuration of the run begins with."""


def main(argv: list[str]) -> int:
    """Write RUN/config.yaml and RUN/checkpoints/imported.ckpt, or nothing."""
    options, rest = _parse(argv)
    entry = _zoo_entry(options)
    rest = [*(entry.options if entry else ()), *rest]
    _check(options, rest)
    import torch

    from lightning_paf.attacks.probe import probe
    from lightning_paf.cli.training import train
    from lightning_paf.interop import map_keys, split_statistics
    from lightning_paf.interop.key_map import stripped

    file = _read(options, entry)
    weights = _weights(options, file, entry)
    dropped = _dropped(weights, options.drop)
    fit_options = ["--data.dataset", options.dataset, *DEFAULTS, "--model.net", options.net]
    if options.activation:
        fit_options += ["--model.activation", options.activation, "--model.activation_scope", options.activation_scope]
    cli = train([*fit_options, "--run", str(options.out), *rest], run=False)
    net = cli.model.model.net
    _check_options_not_in_keys(net, rest)
    kept = {key: value for key, value in weights.tensors.items() if key not in dropped}
    tensors, inside = split_statistics(kept, stripped(net.state_dict()))
    keys = map_keys(tensors, net)
    net.load_state_dict(keys.state)
    statistics, reason = _normalisation(options, inside or file.statistics, file, keys, cli)
    _print_map(file, weights, keys, [*weights.left_out, *dropped, *keys.left_out])
    spec = cli.datamodule.spec
    probe(cli.model.model, torch.rand(2, len(spec.mean), spec.size, spec.size))
    checkpoint = _write(options.out, cli, statistics, _origin(options.file, file, weights))
    if entry:
        print(f"Published: clean {entry.clean} %, AutoAttack {entry.autoattack} % within {entry.norm} {entry.eps}.")
    print(
        f"Normalisation: {reason}.\nWritten: {checkpoint}. Evaluate it with\n"
        f"lightning-paf test --ckpt_path {shlex.quote(str(checkpoint))} --data.root FOLDER"
    )
    return 0


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    epilog = "Other options of `fit`, such as --data.root FOLDER or --model.net.depth 34, can follow."
    parser = command_parser("import-weights", __doc__, epilog)
    add = parser.add_argument
    source = "file of torch.save or safetensors, its https:// URL, hf://OWNER/NAME, or a name of `lightning-paf zoo`"
    add("file", help=f"{source}; no code in it is run")
    add("--zoo", metavar="NAME", help="the file is that of this network of the zoo, e.g. downloaded in a browser")
    add("--sha256", help="expected SHA-256 of the file")
    add("--net", help="file such as configs/net/wrn28_10.yaml, or a class")
    add("--out", type=Path, required=True, metavar="RUN", help="run folder to write")
    add("--dataset", help="dataset that the network was trained on (default: cifar10)")
    add("--activation", help="file such as configs/activation/pssilu.yaml, or a class (default: the net's)")
    add("--activation_scope", default="network", help="network, stage, module or channel")
    add(
        "--normalize",
        choices=("true", "false"),
        help="whether the network expects images normalised by the statistics of the dataset (default: as recorded in "
        "the file or known for its family, else false)",
    )
    add("--mean", type=float, nargs="+", help="normalise by other statistics, for images in [0, 1]")
    add("--std", type=float, nargs="+", help="see --mean")
    add(
        "--drop", action="extend", nargs="+", default=[], metavar="PATTERN", help="leave tensors out, e.g. 'aux_head.*'"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--entry", metavar="KEY", help="import this state dict of the file, e.g. best or ckpt.model")
    which.add_argument("--ema", action="store_true", help="import averaged weights (default if there are any)")
    which.add_argument("--raw", action="store_true", help="import the weights that are not averaged")
    return parser.parse_known_args(argv)


def _zoo_entry(options: argparse.Namespace) -> "ZooEntry | None":
    """Return the entry of the zoo, if there is one, and add its facts to the options."""
    from lightning_paf.interop.zoo import zoo_entry

    named = "." not in options.file and not Path(options.file).exists() and "://" not in options.file
    entry = zoo_entry(options.zoo or options.file) if options.zoo or named else None
    if entry is None and options.net is None:
        raise ValueError("--net must be given for a file. Pass a file such as configs/net/wrn28_10.yaml, or a class.")
    options.dataset = options.dataset or (entry.dataset if entry else "cifar10")
    if entry is None:
        return None
    if named:
        options.file, options.sha256 = entry.url, options.sha256 or entry.sha256
    if options.net is not None:
        raise ValueError(f"--net must not be given for a network of the zoo, got {options.net}. Omit it.")
    options.net, options.activation = entry.net["class_path"], options.activation or entry.activation
    if not (options.mean or options.std or options.normalize):
        options.mean, options.std = entry.mean or None, entry.std or None
        options.normalize = None if entry.mean else "false"
    return entry


def _read(options: argparse.Namespace, entry: "ZooEntry | None") -> "CheckpointFile":
    from lightning_paf.interop import read_checkpoint

    try:
        return read_checkpoint(options.file, options.sha256)
    except ValueError as error:
        if entry is None or entry.url != options.file:
            raise
        by_hand = f"lightning-paf import-weights FILE --zoo {entry.name} --out RUN"
        raise ValueError(f"{error} For a file that you download yourself, run {by_hand}.") from error


def _weights(options: argparse.Namespace, file: "CheckpointFile", entry: "ZooEntry | None") -> "WeightSet":
    """Choose the weights as typed; for the zoo, those that RobustBench loads."""
    which: Which | None = "ema" if options.ema else "raw" if options.raw else None
    named = options.entry
    if entry and which is named is None:
        held = {item.name for item in file.sets}
        named = next((name for name in (entry.entry, "state_dict") if name in held), None)
    return file.choose(which, named)


def _check(options: argparse.Namespace, rest: list[str]) -> None:
    if any(word.split("=")[0] == "--model.normalize" for word in rest):
        raise ValueError("--model.normalize must not be given to import-weights. Pass --normalize.")
    if (options.mean is None) != (options.std is None) or (options.mean and options.normalize):
        raise ValueError("A normalisation must be given by --mean and --std, or by --normalize. Pass one of the two.")
    if options.mean and max(options.mean) > 1:
        raise ValueError(
            f"--mean and --std must be for images in [0, 1], got {options.mean}. Divide both by 255 for grey levels."
        )
    saved = {path.name for path in (options.out / "checkpoints").glob("*.ckpt")}
    if (options.out / "config.yaml").exists() or saved - {IMPORTED}:  # left by a killed command
        raise ValueError(f"--out must be a folder without a run, got {options.out}. Pass another --out.")


def _dropped(weights: "WeightSet", patterns: list[str]) -> list[str]:
    """Return the keys that match patterns of the command line."""
    from lightning_paf.interop.key_map import is_named, some

    for pattern in patterns:
        if not any(is_named(key, [pattern]) for key in weights.tensors):
            raise ValueError(f"--drop must match keys of the file ({some([*weights.tensors])}), got {pattern}.")
    return [key for key in weights.tensors if is_named(key, patterns)]


def _check_options_not_in_keys(net: "nn.Module", rest: list[str]) -> None:
    """Check that options of the network that no key or shape shows are typed."""
    for name, values in getattr(net, "not_in_keys", {}).items():
        if not any(word.split("=")[0].endswith(f".{name}") for word in rest):
            raise ValueError(
                f"{name} of {type(net).__name__} must be passed, since the keys of the file do not depend on it. "
                f"Pass --model.net.{name} {values}."
            )


def _normalisation(
    options: argparse.Namespace, held: "Statistics | None", file: "CheckpointFile", keys: "KeyMap", cli: "PafCLI"
) -> tuple["Statistics | None", str]:
    """Return the normalisation of the network's images, None for none, and its source.

    Args:
        options: Options of the command.
        held: Statistics in the file.
        file: The file, which can record whether the network expects normalised images.
        keys: Mapping of its keys.
        cli: The run.

    Raises:
        ValueError: There is a normalisation, but its statistics are unknown.
    """
    from lightning_paf.interop import Statistics
    from lightning_paf.interop.families import DEEPMIND_MARKS, DEEPMIND_STATISTICS
    from lightning_paf.interop.key_map import stripped
    from lightning_paf.interop.normalized_net import holds_statistics

    spec, typed = cli.datamodule.spec, {"true": True, "false": False}.get(options.normalize)
    if options.mean is not None:
        return Statistics(tuple(options.mean), tuple(options.std)), "from the command line"
    if typed is None and held is not None:
        return held, f"mean {held.mean}, std {held.std}, from the file"
    if typed and spec.name == "npz":
        raise ValueError("--normalize true needs a dataset with known statistics, got npz. Pass --mean and --std.")
    for normalizes, source in ((typed, "from the command line"), (file.normalize, "from the file")):
        if normalizes is not None:
            chosen = Statistics(spec.mean, spec.std) if normalizes else None
            return chosen, f"{f'that of {spec.name}' if normalizes else 'none'}, {source}"
    if (cli.config["model"]["net"].get("init_args") or {}).get("mean") or holds_statistics(keys.state):
        return None, "the network's own"
    if DEEPMIND_MARKS & set(stripped(keys.state)) and spec.name in DEEPMIND_STATISTICS:
        return DEEPMIND_STATISTICS[spec.name], f"that of DeepMind's networks for {spec.name}"
    second = "keys that begin with 1., as after a normalisation" if "1" in keys.root.split(".") else None
    if evidence := file.evidence or second:
        raise ValueError(
            f"The normalisation of {file.path} must be passed, since the file has {evidence}, but no statistics. Pass "
            f"--mean and --std, or --normalize true for those of {spec.name}, or --normalize false for none."
        )
    return None, "none, since the file records none (pass --normalize true if it was trained with one)"


def _print_map(file: "CheckpointFile", weights: "WeightSet", keys: "KeyMap", left_out: list[str]) -> None:
    from lightning_paf.interop.key_map import some

    print(f"{file.path.name} -> {len(keys.rows)} tensors ({keys.renaming})")
    width = max(len(key) for row in keys.rows for key in row.theirs or [""])
    for value, ours, theirs in keys.rows:
        more = f"  (shared with {len(ours) - 1} more)" if len(ours) > 1 else ""
        print(f"  {theirs[0] if theirs else '(absent: 0)':{width}} -> {ours[0]}{more}  {tuple(value.shape)}")
    if weights.name:
        others = [item.name + (" (--raw)" if weights.averaged > item.averaged else "") for item in file.sets]
        other = ", ".join(name for name in others if name != weights.name)
        kind = "averaged weights" if weights.averaged else "weights"
        print(f"Imported the {kind} under {weights.name}{other and '; the file also holds '}{other}.")
    if left_out:
        print(f"Left out, not part of the network: {len(left_out)} ({some(left_out)}).")


def _origin(source: str, file: "CheckpointFile", weights: "WeightSet") -> dict[str, Any]:
    """Return the origin of the weights, for the checkpoint."""
    import hashlib

    with file.path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    url = {"source": source} if "://" in source else {}
    return {"file": file.path.name, **url, "sha256": digest, "entry": weights.name, "averaged": weights.averaged}


def _write(out: Path, cli: "PafCLI", statistics: "Statistics | None", origin: dict[str, Any]) -> Path:
    """Write checkpoint and configuration, with the normalisation in the latter."""
    import yaml

    from lightning_paf.interop import NormalizedNet, Statistics
    from lightning_paf.runs.checkpoints import AtomicCheckpointIO
    from lightning_paf.utils.files import write_whole

    config, spec = yaml.safe_load(cli.parser.dump(cli.config, skip_none=False)), cli.datamodule.spec
    config.pop("ckpt_path", None)
    if statistics is not None and statistics.same_as(Statistics(spec.mean, spec.std)):
        config["model"]["normalize"] = True
    elif statistics is not None:
        inner, model, (mean, std) = config["model"]["net"], cli.model.model, map(list, statistics)
        inner["init_args"] = {**(inner.get("init_args") or {}), "num_classes": spec.num_classes}
        arguments = {"net": inner, "mean": mean, "std": std}
        config["model"]["net"] = {"class_path": "lightning_paf.interop.NormalizedNet", "init_args": arguments}
        model.net = NormalizedNet(model.net, mean, std)
    content = {
        "pytorch-lightning_version": version("lightning"),
        "epoch": 0,
        "global_step": 0,
        "state_dict": cli.model.state_dict(),
        "imported": origin,
        "hyper_parameters": {
            "normalize": config["model"]["normalize"],
            **{"dataset": spec.name, "num_classes": spec.num_classes, "channels": spec.channels},
        },
    }
    checkpoint, text = out / "checkpoints" / IMPORTED, yaml.safe_dump(config, sort_keys=False)
    AtomicCheckpointIO().save_checkpoint(content, checkpoint)
    write_whole(out / "config.yaml", f"# lightning.pytorch=={version('lightning')}\n{text}".encode())
    return checkpoint
