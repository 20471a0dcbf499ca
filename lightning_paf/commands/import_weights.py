"""Turn a checkpoint of another program into a run that `test`, `verify`, `sanity-check` and `export` understand."""

import argparse
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_paf.cli.training import PafCLI
    from lightning_paf.interop import CheckpointFile, KeyMap, Statistics, WeightSet

DEFAULTS = (
    *("--autoattack", "RobustEval", "--autoattack.name", "autoattack", "--autoattack.every_n_epochs", "0"),
    *("--autoattack.attack", "AutoAttack", "--model.attack", "PGD", "--model.objective", "AdversarialCE"),
    *("--data.real_fraction", "1", "--model.normalize", "false"),
)
"""Of the run's configuration, as words of `fit`."""


def main(argv: list[str]) -> int:
    """Write RUN/config.yaml and RUN/checkpoints/imported.ckpt, or nothing.

    Args:
        argv: Options, see `--help`.

    Returns:
        Exit status 0.

    Raises:
        ValueError: The file cannot be read, does not fit the network, or the run folder is taken.
    """
    options, rest = _parse(argv)
    _check(options, rest)
    from lightning_paf.cli.training import train
    from lightning_paf.interop import map_keys, read_checkpoint, split_statistics

    file = read_checkpoint(options.file)
    weights = file.choose("ema" if options.ema else "raw" if options.raw else None)
    tensors, inside = split_statistics(weights.tensors)
    words = ["--data.dataset", options.dataset, *DEFAULTS, "--model.net", options.net]
    if options.activation:
        words += ["--model.activation", options.activation, "--model.activation_scope", options.activation_scope]
    cli = train([*words, "--run", str(options.out), *rest], run=False)
    keys = map_keys(tensors, cli.model.model.net)
    cli.model.model.net.load_state_dict(keys.state)
    statistics, reason = _normalisation(options, inside or file.statistics, file.normalize, tensors, cli)
    _print_map(file, weights, keys)
    checkpoint = _write(options.out, cli, statistics, _origin(file, weights))
    print(
        f"Normalisation: {reason}.\n{checkpoint} holds {options.file}. Evaluate it:\n"
        f"lightning-paf test --ckpt_path {checkpoint} --data.root FOLDER"
    )
    return 0


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        "lightning-paf import-weights",
        description=__doc__,
        epilog="Other options of `fit`, such as --data.root FOLDER or --model.net.depth 34, may follow.",
        allow_abbrev=False,
    )
    parser.add_argument("file", type=Path, help="file of torch.save or safetensors; nothing in it is executed")
    parser.add_argument("--net", required=True, help="file such as configs/net/wrn28_10.yaml, or a class")
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="run folder to write")
    parser.add_argument("--dataset", default="cifar10", help="what the network was trained on")
    parser.add_argument(
        "--activation", help="file such as configs/activation/pssilu.yaml, or a class; default: the net's"
    )
    parser.add_argument("--activation_scope", default="network", help="network, stage, module or channel")
    parser.add_argument(
        "--normalize",
        choices=("true", "false"),
        help="whether the network expects images normalised by the statistics of the dataset; default: as the "
        "file or its family needs, else false",
    )
    parser.add_argument("--mean", type=float, nargs="+", help="normalise by other statistics, for images in [0, 1]")
    parser.add_argument("--std", type=float, nargs="+")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--ema", action="store_true", help="take averaged weights; they are taken where there are some")
    which.add_argument("--raw", action="store_true", help="take the weights that are no average")
    return parser.parse_known_args(argv)


def _check(options: argparse.Namespace, rest: list[str]) -> None:
    if any(word.split("=")[0] == "--model.normalize" for word in rest):
        raise ValueError("The option for normalisation is --normalize here, not --model.normalize. Pass that.")
    if (options.mean is None) != (options.std is None) or (options.mean and options.normalize):
        raise ValueError(
            "A normalisation is given by --mean and --std together, or by --normalize. Pass one of the two."
        )
    if (options.out / "config.yaml").exists() or (options.out / "checkpoints").exists():
        raise ValueError(f"A run folder holds one run, but {options.out} already holds one. Pass another --out.")


def _normalisation(
    options: argparse.Namespace, held: "Statistics | None", expected: bool | None, keys: Iterable[str], cli: "PafCLI"
) -> tuple["Statistics | None", str]:
    """The normalisation of the network's images, if there is one, and where it comes from.

    Args:
        options: As typed.
        held: Statistics in the file.
        expected: Whether the network expects normalised images, where the file says so.
        keys: Of the file.
        cli: The run.
    """
    from lightning_paf.interop import Statistics
    from lightning_paf.interop.families import DEEPMIND_MARKS, DEEPMIND_STATISTICS
    from lightning_paf.interop.key_map import stripped

    spec, typed = cli.datamodule.spec, {"true": True, "false": False}.get(options.normalize)
    if options.mean is not None:
        return Statistics(tuple(options.mean), tuple(options.std)), "as typed"
    if typed is None and held is not None:
        return held, f"mean {held.mean}, std {held.std}, from the file"
    for answer, source in ((typed, "as typed"), (expected, "from the file")):
        if answer is not None:
            chosen = Statistics(spec.mean, spec.std) if answer else None
            return chosen, f"{f'that of {spec.name}' if answer else 'none'}, {source}"
    if (cli.config["model"]["net"].get("init_args") or {}).get("mean"):
        return None, "the network's own"
    if DEEPMIND_MARKS & set(stripped(keys)) and spec.name in DEEPMIND_STATISTICS:
        return DEEPMIND_STATISTICS[spec.name], f"that of DeepMind's networks for {spec.name}"
    return None, "none, since nothing in the file asks for one (pass --normalize true if it was trained with one)"


def _print_map(file: "CheckpointFile", weights: "WeightSet", keys: "KeyMap") -> None:
    print(f"{file.path.name} -> {len(keys.rows)} tensors ({keys.renaming})")
    width = max(len(key) for row in keys.rows for key in row.theirs or [""])
    for value, ours, theirs in keys.rows:
        more = f"  (and {len(ours) - 1} more that share it)" if len(ours) > 1 else ""
        print(f"  {theirs[0] if theirs else '(absent: 0)':{width}} -> {ours[0]}{more}  {tuple(value.shape)}")
    if weights.name:
        others = [item.name + (" (--raw)" if weights.averaged > item.averaged else "") for item in file.sets]
        other = ", ".join(name for name in others if name != weights.name)
        print(
            f"Took the {'averaged ' if weights.averaged else ''}weights under {weights.name}"
            f"{other and '; the file also holds '}{other}."
        )
    if weights.left_out:
        print(f"Left out, as no part of the network: {', '.join(weights.left_out)}.")


def _origin(file: "CheckpointFile", weights: "WeightSet") -> dict[str, Any]:
    """Where the weights came from, kept in the checkpoint."""
    import hashlib

    with file.path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return {"file": file.path.name, "sha256": digest, "entry": weights.name, "averaged": weights.averaged}


def _write(out: Path, cli: "PafCLI", statistics: "Statistics | None", origin: dict[str, Any]) -> Path:
    """Write the run, with its normalisation in the words of `fit`."""
    import yaml

    from lightning_paf.interop import NormalizedNet, Statistics
    from lightning_paf.runs.checkpoints import AtomicCheckpointIO

    config, spec = yaml.safe_load(cli.parser.dump(cli.config, skip_none=False)), cli.datamodule.spec
    config.pop("ckpt_path", None)  # commands name their own
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
    }
    checkpoint = out / "checkpoints" / "imported.ckpt"
    AtomicCheckpointIO().save_checkpoint(content, checkpoint)
    (out / "config.yaml").write_text(
        f"# lightning.pytorch=={version('lightning')}\n{yaml.safe_dump(config, sort_keys=False)}"
    )
    return checkpoint
