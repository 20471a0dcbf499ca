"""Write a trained network for other programs: state dict, safetensors, ONNX, leaderboard entry; checks the files."""

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_paf.evaluation.evidence.write import Receipt
    from lightning_paf.evaluation.samples import Samples
    from lightning_paf.loading import Run

    Batches = Iterator[tuple[str, Tensor, Tensor]]

FILES = {
    "state_dict": "model.pt",
    "safetensors": "model.safetensors",
    "model_info": "model_info.json",
    "onnx": "model.onnx",
}
SUMMARY = "export.json"
BATCH = 64


def main(argv: list[str]) -> int:
    """Write the files of all formats, or none of them.

    Args:
        argv: Options, see `--help`.

    Returns:
        Exit status 0.

    Raises:
        ValueError: An option is wrong, a file exists, or a file does not compute what the network computes.
    """
    options, rest = _parse(argv)
    formats = _formats(options)
    from lightning_paf.loading import load_run

    run = load_run(options.ckpt, options.config, options.device, rest)
    networks = [FILES[name] for name in formats if name != "model_info"]
    receipts = _receipts(run, options) if networks else []
    samples = run.samples() if networks and (options.examples or receipts) else None
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.out, prefix=".partial-") as folder:
        for name, write in _writers(run, options, samples).items():
            if name in formats:
                write(Path(folder) / FILES[name])
        for name in networks:
            examples = _adversarial_examples(receipts, samples) if samples else ()
            _check(Path(folder) / name, run, chain(_images(run, options, samples), examples))
        if networks and not any(receipt.encoding.any() for receipt in receipts):
            print("No receipt of `test` has adversarial examples of these weights, so none was checked.")
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
    parser.add_argument(
        "--receipt", type=Path, help="of `test`: its adversarial examples must fool the files too; default: all of RUN"
    )
    parser.add_argument(
        "--examples", type=int, default=64, help="test images to compare logits on; 0: random images, no data is read"
    )
    parser.add_argument("--eps", type=Fraction, help="of the perturbed images; default: the run's AutoAttack, or 8/255")
    parser.add_argument("--norm", choices=("linf", "l2", "l1"), help="default: the run's AutoAttack, or linf")
    parser.add_argument("--seed", type=int, default=0, help="of the perturbed images")
    parser.add_argument("--queries", help=argparse.SUPPRESS)
    return parser.parse_known_args(argv)


def _formats(options: argparse.Namespace) -> list[str]:
    typed = options.formats.split(",")
    unknown = [name for name in typed if name not in FILES]
    if unknown:
        raise ValueError(f"--formats must be some of {', '.join(FILES)}, got {', '.join(unknown)}. Pass others.")
    if options.queries is not None:
        raise ValueError(
            "--queries is gone, because the ONNX file is not attacked again. Pass --receipt FILE of `test`: its "
            "adversarial examples must fool the file."
        )
    formats = [name for name in FILES if name in typed]
    least = int("onnx" in formats)  # the file is for one size of images
    if options.examples < least:
        raise ValueError(f"--examples must be at least {least}, got {options.examples}. Pass --examples 64.")
    if options.eps is not None and options.eps <= 0:
        raise ValueError(f"--eps must be positive, got {options.eps}. Pass --eps 8/255.")
    for name in [*(FILES[name] for name in formats), SUMMARY]:
        if (options.out / name).exists():
            raise ValueError(f"{options.out / name} exists, and nothing is overwritten. Pass another --out.")
    if "onnx" in formats:
        from lightning_paf.interop.onnx_model import require_onnx

        require_onnx()
    return formats


def _writers(run: "Run", options: argparse.Namespace, samples: "Samples | None") -> "dict[str, Callable[[Path], None]]":
    from lightning_paf.interop import bare_net, save_safetensors, save_state_dict
    from lightning_paf.interop.onnx_model import save_onnx

    net, statistics = bare_net(run.model)
    return {
        "model_info": lambda path: _write_model_info(run, options.result, path),
        "state_dict": lambda path: save_state_dict(net, path),
        "safetensors": lambda path: save_safetensors(net, path, statistics),
        "onnx": lambda path: save_onnx(run.model, next(_images(run, options, samples))[1], path),
    }


def _write_model_info(run: "Run", evaluation: Path | None, path: Path) -> None:
    from lightning_paf.evaluation import EvaluationResult
    from lightning_paf.interop import model_info
    from lightning_paf.utils.hashing import weights_fingerprint

    result = EvaluationResult.load(evaluation) if evaluation else None
    if result and result.fingerprints.get("model", weights_fingerprint(run.model)) != weights_fingerprint(run.model):
        raise ValueError(f"{evaluation} is of another network than {run.checkpoint}. Pass the --result of this one.")
    entry, unknown = model_info(run.config, result)
    path.write_text(json.dumps(entry, indent=2) + "\n")
    print(f"{path.name}: its author must fill in {', '.join(unknown)}.")


def _check(path: Path, run: "Run", batches: "Batches") -> None:
    """Compare the network in a file with that of the run.

    Raises:
        ValueError: Logits differ.
    """
    from lightning_paf.interop.parity import MOST_NAMED, RULE, compare, load_export

    found = compare(run.model, load_export(path, run.model), batches)
    for parity in found:
        print(f"{path.name}: {parity}.")
    mismatches = [line for parity in found for line in parity.mismatches][:MOST_NAMED]
    if mismatches:
        help_ = "Nothing was written. Pass --formats without this one, and report which network it is."
        raise ValueError(
            "\n".join([f"{path.name} does not compute what the network computes. {RULE}", *mismatches, help_])
        )


def _images(run: "Run", options: argparse.Namespace, samples: "Samples | None") -> "Batches":
    """Test images and their random perturbations, or random images."""
    import torch

    from lightning_paf.functional.geometry import geometry_of

    if samples is None or not options.examples:
        spec = run.datamodule.spec
        x = torch.rand(BATCH, spec.channels, spec.size, spec.size, device=run.device)
        yield "random image", x, run.model(x).argmax(1)
        return
    x, y = samples.fetch(samples.ids[: options.examples])
    yield "test image", x, y
    evaluation = (run.config.get("autoattack") or {}).get("init_args") or {}
    threat = (evaluation.get("attack") or {}).get("init_args") or {}
    eps = float(options.eps or Fraction(str(threat.get("eps", "8/255")).replace(" ", "")))
    geometry = geometry_of(options.norm or threat.get("norm", "linf"))
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        delta = geometry.uniform(x, eps)
    yield "perturbed image", geometry.move(x, delta, eps, (0, 1)), y


def _receipts(run: "Run", options: argparse.Namespace) -> "list[Receipt]":
    """The receipt that was named, or all of the run's folder that are of these weights."""
    from lightning_paf.evaluation.evidence.write import read_receipt
    from lightning_paf.utils.hashing import weights_fingerprint

    named, weights = options.receipt, weights_fingerprint(run.model)
    folder = run.checkpoint.parent.parent / "test"
    paths = [named] if named else sorted(folder.glob("*.evidence.safetensors")) if options.examples else []
    receipts = [receipt for receipt in map(read_receipt, paths) if receipt.manifest["weights"] == weights]
    if named and not receipts:
        raise ValueError(f"{named} is the receipt of another network than {run.checkpoint}. Pass the --receipt of it.")
    return receipts


def _adversarial_examples(receipts: "list[Receipt]", samples: "Samples") -> "Batches":
    """The adversarial examples of receipts, with their labels."""
    import numpy as np
    import torch

    from lightning_paf.utils.hashing import sample_fingerprints

    for receipt in receipts:
        fooled = np.flatnonzero(receipt.encoding)
        for start in range(0, len(fooled), BATCH):
            rows = fooled[start : start + BATCH]
            x, y = samples.fetch(receipt.ids[rows][np.isin(receipt.ids[rows], samples.ids)])
            if not np.array_equal(sample_fingerprints(x, y), receipt.inputs[rows]):
                raise ValueError("The receipt is about other test images. Pass the --data.root of its evaluation.")
            yield "adversarial example", torch.from_numpy(receipt.judged_images(rows, x.cpu().numpy())).to(x.device), y


def _write_summary(run: "Run", path: Path) -> None:
    """What a reader of the files must know; a state dict says nothing of the normalisation in front of it."""
    from lightning_paf import __version__
    from lightning_paf.interop import bare_net
    from lightning_paf.utils.hashing import weights_fingerprint

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
