"""Turn a checkpoint of another program into a run that `test`, `verify`, `doctor` and `export` understand."""

import argparse
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_paf.cli import PafCLI
    from lightning_paf.interop import CheckpointFile, KeyMap, Statistics, WeightSet
    from lightning_paf.specs import DatasetSpec

JUDGE = ("--autoattack", "RobustEval", "--autoattack.name", "autoattack", "--autoattack.every_n_epochs", "0")
ATTACK = ("--autoattack.attack", "AutoAttack")
TRAINING = ("--model.attack", "PGD", "--model.objective", "AdversarialCE", "--data.real_fraction", "1")
WIDTH = 160


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
    from lightning_paf.interop import map_keys, read_checkpoint, split_statistics
    from lightning_paf.specs import dataset_spec

    file = read_checkpoint(options.file)
    weights = file.choose("ema" if options.ema else "raw" if options.raw else None)
    tensors, inside = split_statistics(weights.tensors)
    draft = _draft(options, rest)
    keys = map_keys(tensors, draft.model.model.net)
    data = draft.config["data"]
    spec = dataset_spec(data["dataset"], data["num_classes"])
    statistics, reason = _normalisation(options, file, inside, list(tensors), spec, draft)
    _print_map(file, weights, keys)
    checkpoint = _write(options.out, draft, statistics, spec, keys.state, _origin(file, weights))
    print(
        f"Normalisation: {reason}.\n{checkpoint} holds {options.file}. Judge it:\n"
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
    parser.add_argument("file", type=Path, help="what torch.save or safetensors wrote; nothing in it is executed")
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
        help="whether the network expects images normalised by the statistics of the dataset; default: what the file "
        "or its family says, else false",
    )
    parser.add_argument("--mean", type=float, nargs="+", help="normalise by other statistics, for images in [0, 1]")
    parser.add_argument("--std", type=float, nargs="+")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--ema", action="store_true", help="take averaged weights; they are taken where there are some")
    which.add_argument("--raw", action="store_true", help="take the weights that are no average")
    return parser.parse_known_args(argv)


def _check(options: argparse.Namespace, rest: list[str]) -> None:
    if any(word.split("=")[0] == "--model.normalize" for word in rest):
        raise ValueError("What images are normalised by is said by --normalize here, not --model.normalize. Pass that.")
    if (options.mean is None) != (options.std is None) or (options.mean and options.normalize):
        raise ValueError(
            "A normalisation is given by --mean and --std together, or by --normalize. Pass one of the two."
        )
    if (options.out / "config.yaml").exists() or (options.out / "checkpoints").exists():
        raise ValueError(f"A run folder holds one run, but {options.out} already holds one. Pass another --out.")


def _draft(options: argparse.Namespace, rest: list[str]) -> "PafCLI":
    """The run as described by the options, without weights: on the meta device a network of any size costs nothing."""
    import torch

    from lightning_paf.cli import train

    words = ["--data.dataset", options.dataset, *TRAINING, *JUDGE, *ATTACK, "--model.net", options.net]
    if options.activation:
        words += ["--model.activation", options.activation, "--model.activation_scope", options.activation_scope]
    with torch.device("meta"):
        return train([*words, "--model.normalize", "false", "--run", str(options.out), *rest], run=False)


def _normalisation(
    options: argparse.Namespace,
    file: "CheckpointFile",
    inside: "Statistics | None",
    keys: list[str],
    spec: "DatasetSpec",
    draft: "PafCLI",
) -> tuple["Statistics | None", str]:
    """What the network's images are normalised by, if at all, and who says so."""
    from lightning_paf.interop import Statistics
    from lightning_paf.interop.families import HIDDEN_NORMALISATIONS
    from lightning_paf.interop.key_map import stripped

    own = Statistics(spec.mean, spec.std)
    if options.mean is not None:
        return Statistics(tuple(options.mean), tuple(options.std)), "as typed"
    if options.normalize is not None:
        return (own, f"that of {spec.name}, as typed") if options.normalize == "true" else (None, "none, as typed")
    for found in (inside, file.statistics):
        if found is not None:
            return found, f"mean {found.mean}, std {found.std}, from the file"
    if file.normalize is not None:
        return (own, f"that of {spec.name}, says the file") if file.normalize else (None, "none, says the file")
    if _normalises(draft):
        return None, "the network's own"
    for family in HIDDEN_NORMALISATIONS:
        if family.mark in stripped(keys) and spec.name in family.statistics:
            return Statistics(*family.statistics[spec.name]), f"that of {family.name} for {spec.name}"
    return None, "none, since nothing in the file asks for one (pass --normalize true if it was trained with one)"


def _normalises(draft: "PafCLI") -> bool:
    """Whether the network was configured to normalise by itself."""
    arguments = draft.config["model"]["net"].get("init_args") or {}
    return bool(arguments.get("mean"))


def _print_map(file: "CheckpointFile", weights: "WeightSet", keys: "KeyMap") -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=None if os.isatty(1) else WIDTH)
    table = Table(title=f"{file.path.name} -> {len(keys.rows)} tensors ({keys.renaming})", title_justify="left")
    table.add_column("key in the file", overflow="fold")
    table.add_column("key here", overflow="fold")
    table.add_column("shape")
    for row in keys.rows:
        sites = f"  (and {row.sites - 1} more that share it)" if row.sites > 1 else ""
        table.add_row(row.theirs or "(absent: 0)", row.ours + sites, str(row.shape))
    console.print(table)
    others = [item.name + (" (--raw)" if weights.averaged > item.averaged else "") for item in file.sets]
    others = [name for name in others if name != weights.name]
    kind = "averaged weights" if weights.averaged else "weights"
    if weights.name:
        other = f"; the file also holds {', '.join(others)}" if others else ""
        print(f"Took the {kind} under {weights.name}{other}.")
    if weights.left_out:
        print(f"Left out, as no part of the network: {', '.join(weights.left_out)}.")


def _origin(file: "CheckpointFile", weights: "WeightSet") -> dict[str, Any]:
    """Where the weights came from, kept in the checkpoint."""
    import hashlib

    with file.path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return {"file": file.path.name, "sha256": digest, "entry": weights.name, "averaged": weights.averaged}


def _write(
    out: Path,
    draft: "PafCLI",
    statistics: "Statistics | None",
    spec: "DatasetSpec",
    state: dict[str, Any],
    origin: dict[str, Any],
) -> Path:
    """Build the run from the configuration that is saved, load the weights, and write both."""
    import lightning
    import torch

    from lightning_paf.cli import train
    from lightning_paf.interop import NormalizedNet

    text = _configuration(draft, statistics, spec)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.yaml").write_text(text)
        cli = train(["--config", f"{folder}/config.yaml"], run=False)
    model = cli.model.model
    (model.net.net if isinstance(model.net, NormalizedNet) else model.net).load_state_dict(state)
    checkpoint = out / "checkpoints" / "imported.ckpt"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "pytorch-lightning_version": lightning.__version__,
        "epoch": 0,
        "global_step": 0,
        "state_dict": cli.model.state_dict(),
        "imported": origin,
    }
    partial = checkpoint.with_suffix(".partial")
    torch.save(content, partial)
    partial.replace(checkpoint)
    (out / "config.yaml").write_text(text)
    return checkpoint


def _configuration(draft: "PafCLI", statistics: "Statistics | None", spec: "DatasetSpec") -> str:
    """The draft's configuration with its normalisation, in the words of `fit`."""
    import lightning
    import yaml

    from lightning_paf.interop import Statistics

    config = yaml.safe_load(draft.parser.dump(draft.config, skip_none=False))
    config.pop("ckpt_path", None)  # commands name their own
    if statistics is not None and statistics.same_as(Statistics(spec.mean, spec.std)):
        config["model"]["normalize"] = True
    elif statistics is not None:
        inner = config["model"]["net"]
        inner["init_args"] = {**(inner.get("init_args") or {}), "num_classes": spec.num_classes}
        arguments = {"net": inner, "mean": list(statistics.mean), "std": list(statistics.std)}
        config["model"]["net"] = {"class_path": "lightning_paf.interop.NormalizedNet", "init_args": arguments}
    return f"# lightning.pytorch=={lightning.__version__}\n{yaml.safe_dump(config, sort_keys=False)}"
