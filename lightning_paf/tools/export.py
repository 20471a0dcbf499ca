"""Write a trained network for other programs: state dict, safetensors, ONNX (attacked again), leaderboard entry."""

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_paf.attacks import Attack
    from lightning_paf.evaluation import EvaluationResult
    from lightning_paf.evaluation.receipt import Receipt
    from lightning_paf.loading import Run

FILES = {
    "state_dict": "model.pt",
    "safetensors": "model.safetensors",
    "model_info": "model_info.json",
    "onnx": "model.onnx",
}
SUMMARY = "export.json"
BATCH = 64
RULE = (
    "Rule: logits equal to 1e-4 (of the largest logit, where that is above 1) on every clean and every adversarial "
    "image, and no difference of robust accuracy at the 5 % level (exact paired test)."
)


def main(argv: list[str]) -> int:
    """Write the files of all formats, or none of them.

    Args:
        argv: Options, see `--help`.

    Returns:
        Exit status 0.

    Raises:
        ValueError: An option is wrong, a file exists, or the ONNX file is not the network.
    """
    options, rest = _parse(argv)
    formats = _formats(options)
    if "onnx" in formats:
        from lightning_paf.interop.onnx_model import require_onnx

        require_onnx()
    from lightning_paf.loading import load_run

    run = load_run(options.ckpt, options.config, options.device, rest)
    writers: dict[str, Callable[[Run, argparse.Namespace, Path], None]] = {
        "state_dict": _write_state_dict,
        "safetensors": _write_safetensors,
        "model_info": _write_model_info,
        "onnx": _write_onnx,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.out, prefix=".partial-") as folder:
        for name in formats:
            writers[name](run, options, Path(folder) / FILES[name])
        _write_summary(run, Path(folder) / SUMMARY)
        for path in sorted(Path(folder).iterdir()):
            shutil.move(path, options.out / path.name)
            print(options.out / path.name)
    return 0


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    from lightning_paf.loading import add_run_arguments

    parser = argparse.ArgumentParser(
        "lightning-paf export",
        description=__doc__,
        epilog="Other options of `fit`, such as --data.root FOLDER, may follow.",
        allow_abbrev=False,
    )
    add_run_arguments(parser)
    # Other devices round convolutions by more than the tolerance.
    parser.set_defaults(device="cpu")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write into")
    parser.add_argument("--formats", default=",".join(FILES), help=f"some of {', '.join(FILES)} (default: all)")
    parser.add_argument("--result", type=Path, help="RUN/test/autoattack_....json, for the leaderboard entry")
    parser.add_argument("--receipt", type=Path, help="of `test`: its adversarial examples must fool the ONNX file too")
    parser.add_argument("--examples", type=int, default=64, help="test images that the ONNX file is attacked on")
    parser.add_argument("--queries", type=int, default=100, help="of Square, for each image")
    parser.add_argument("--eps", type=Fraction, help="of Square; default: as the run's AutoAttack, else 8/255")
    parser.add_argument("--norm", choices=("linf", "l2"), help="of Square; default: as the run's AutoAttack, else linf")
    parser.add_argument("--seed", type=int, default=0, help="of Square")
    return parser.parse_known_args(argv)


def _formats(options: argparse.Namespace) -> list[str]:
    typed = options.formats.split(",")
    unknown = [name for name in typed if name not in FILES]
    if unknown:
        raise ValueError(f"A format is one of {', '.join(FILES)}, but --formats has {', '.join(unknown)}. Pass others.")
    formats = [name for name in FILES if name in typed]
    for name in ("examples", "queries"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} must be at least 1, but is {getattr(options, name)}. Pass --{name} 1 or more.")
    for name in [*(FILES[name] for name in formats), SUMMARY]:
        if (options.out / name).exists():
            raise ValueError(f"{options.out / name} exists, and nothing is written over. Pass another --out.")
    return formats


def _write_state_dict(run: "Run", options: argparse.Namespace, path: Path) -> None:
    from lightning_paf.interop import bare_net, save_state_dict

    save_state_dict(bare_net(run.model)[0], path)


def _write_safetensors(run: "Run", options: argparse.Namespace, path: Path) -> None:
    from lightning_paf.interop import bare_net, save_safetensors

    net, statistics = bare_net(run.model)
    save_safetensors(net, path, statistics)


def _write_model_info(run: "Run", options: argparse.Namespace, path: Path) -> None:
    from lightning_paf.evaluation import EvaluationResult
    from lightning_paf.interop import model_info

    result = EvaluationResult.load(options.result) if options.result else None
    if result is not None and _is_of_another(result, run):
        raise ValueError(
            f"{options.result} is of another network than {run.checkpoint}. Pass the --result of this one."
        )
    entry, unknown = model_info(run.config, result)
    path.write_text(json.dumps(entry, indent=2) + "\n")
    print(f"{path.name}: its author must fill in {', '.join(unknown)}.")


def _is_of_another(result: "EvaluationResult", run: "Run") -> bool:
    from lightning_paf.evaluation.fingerprint import weights_fingerprint

    judged = result.fingerprints.get("model")
    return judged is not None and judged != weights_fingerprint(run.model)


def _write_onnx(run: "Run", options: argparse.Namespace, path: Path) -> None:
    """Write the file, and prove that it is the network."""
    import torch

    from lightning_paf.interop.onnx_model import OnnxModel, save_onnx
    from lightning_paf.interop.parity import compare

    known = _receipt_images(run, options.receipt) if options.receipt else ()
    samples = run.samples()
    ids = samples.ids[: options.examples]
    x, y = samples.fetch(ids)
    save_onnx(run.model, torch.rand(2, *x.shape[1:], device=x.device), path)
    comparison = compare(run.model, OnnxModel(path), _square(run, options), ids, (x, y), known, options.seed)
    print(f"{path.name}: {comparison}\n{RULE}")
    if not comparison.agrees:
        raise ValueError(
            f"The ONNX file is not the network: {comparison.evidence()}\nNothing was written. Pass "
            "--formats state_dict,safetensors,model_info, and report which network it is."
        )


def _square(run: "Run", options: argparse.Namespace) -> "Attack":
    """The second attack, in the threat model of the run."""
    from lightning_paf.attacks.square import Square

    judge = (run.config.get("autoattack") or {}).get("init_args") or {}
    threat = (judge.get("attack") or {}).get("init_args") or {}
    eps = options.eps or Fraction(str(threat.get("eps", "8/255")).replace(" ", ""))
    norm = options.norm or threat.get("norm", "linf")
    if norm not in ("linf", "l2"):
        raise ValueError(f"Square attacks in linf and l2, but the run is judged in {norm}. Pass --norm and --eps.")
    attack: Attack = Square(eps, norm=norm, queries=options.queries, batch_size=options.examples)
    return attack


def _receipt_images(run: "Run", path: Path) -> Iterator["tuple[Tensor, Tensor]"]:
    """Adversarial images of a receipt with their labels, by and by; that it is of this network is checked at once."""
    from lightning_paf.evaluation.fingerprint import weights_fingerprint
    from lightning_paf.evaluation.receipt import read_receipt

    receipt = read_receipt(path)
    if receipt.manifest["weights"] != weights_fingerprint(run.model):
        raise ValueError(
            f"{path} is the receipt of another network than {run.checkpoint}. Pass the --receipt of this one."
        )
    return _decoded(run, receipt)


def _decoded(run: "Run", receipt: "Receipt") -> Iterator["tuple[Tensor, Tensor]"]:
    import numpy as np
    import torch

    from lightning_paf.evaluation.fingerprint import sample_fingerprints

    samples = run.samples()
    broken = np.flatnonzero(receipt.encoding)
    for start in range(0, len(broken), BATCH):
        places = broken[start : start + BATCH]
        x, y = samples.fetch(receipt.ids[places])
        if not np.array_equal(sample_fingerprints(x, y), receipt.inputs[places]):
            raise ValueError("The receipt is about other test images. Pass the --data.root of its evaluation.")
        yield torch.from_numpy(receipt.judged_images(places, x.cpu().numpy())).to(x.device), y


def _write_summary(run: "Run", path: Path) -> None:
    """What a reader of the files must know; a state dict says nothing of the normalisation in front of it."""
    from lightning_paf import __version__
    from lightning_paf.evaluation.fingerprint import weights_fingerprint
    from lightning_paf.interop import bare_net

    net, statistics = bare_net(run.model)
    model = run.config["model"]
    summary = {
        "written_by": f"lightning_paf {__version__}",
        "network": f"{type(net).__module__}.{type(net).__qualname__}",
        "configuration": {key: model.get(key) for key in ("net", "activation", "activation_scope")},
        "num_classes": run.model.num_classes,
        "input": "images (N, C, H, W) in [0, 1]; the ONNX file normalises by itself, the state dicts do not",
        "normalisation": None if statistics is None else statistics._asdict(),
        "weights": weights_fingerprint(run.model),
    }
    path.write_text(json.dumps(summary, indent=2, default=str) + "\n")
