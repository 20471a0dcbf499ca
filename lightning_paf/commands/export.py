"""Export a trained network as state dict, safetensors and ONNX, and check it."""

import argparse
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_paf.utils.arguments import command_parser, number
from lightning_paf.utils.radius import radius_from_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from lightning_paf.evaluation import Samples
    from lightning_paf.evaluation.evidence import Evidence
    from lightning_paf.loading import Run

    Batches = Iterator[tuple[str, Tensor, Tensor]]

FILES = {
    "state_dict": "model.pt",
    "safetensors": "model.safetensors",
    "model_info": "model_info.json",
    "onnx": "model.onnx",
}
SUMMARY, CARD = "export.json", "README.md"
BATCH = 64
REMOVED = {
    "--queries": ": the adversarial examples of `test` must fool the exported networks instead",
    "--receipt": "",
}
"""Removed options, and the text appended to the error."""


def main(argv: list[str]) -> int:
    """Write the files of all formats, or none of them."""
    options, rest = _parse(argv)
    formats = _formats(options)
    if options.push:
        _repository(options.push)
    from lightning_paf.loading import load_run

    run = load_run(options.ckpt, options.config, options.device, rest)
    networks = [FILES[name] for name in formats if name != "model_info"]
    held = _evidence(run, options)
    samples = run.samples() if networks and (options.examples or options.evidence) else None
    evidence = _of_these_images(held, samples) if samples else []
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.out, prefix=".partial-") as folder:
        for name, write in _writers(run, options, samples).items():
            if name in formats:
                write(Path(folder) / FILES[name])
        for name in networks:
            examples = _adversarial_examples(evidence, samples) if samples else ()
            _check_parity(Path(folder) / name, run, chain(_images(run, options, samples), examples))
        if networks and not any(content.fooled.any() for content in evidence):
            print("Adversarial examples were not checked: the run has no evidence with any for these weights.")
        _write_summary(run, Path(folder) / SUMMARY)
        _write_card(run, held, options, Path(folder) / CARD)
        for path in sorted(Path(folder).iterdir()):
            shutil.move(path, options.out / path.name)
            print(options.out / path.name)
    if options.push:
        _push(options, [*(FILES[name] for name in formats), SUMMARY, CARD])
    return 0


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    from lightning_paf.loading import add_run_arguments

    parser = command_parser("export", __doc__)
    add_run_arguments(parser)
    parser.set_defaults(device="cpu")  # other devices round convolutions by more than the tolerance
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write into")
    add("--formats", default=",".join(FILES), help=f"some of {', '.join(FILES)} (default: all)")
    add("--result", type=Path, help="RUN/test/autoattack_....json, for the leaderboard entry")
    add(
        "--evidence",
        type=Path,
        help="evidence file whose adversarial examples must fool the exported networks (default: all evidence of the "
        "run)",
    )
    add(
        "--examples",
        type=number(int, least=0),
        default=64,
        help="test images to compare logits on; 0: random images, no data is read (default: 64)",
    )
    add(
        "--eps",
        type=number(radius_from_text, above=0),
        help="radius of the perturbed images (default: that of the run's AutoAttack, else 8/255)",
    )
    add(
        "--norm",
        choices=("linf", "l2", "l1"),
        help="norm of the perturbed images (default: that of the run's AutoAttack, else linf)",
    )
    add("--seed", type=int, default=0, help="seed of the perturbed images")
    add("--push", metavar="hf://OWNER/NAME", help="upload the files with a model card to the Hugging Face Hub")
    add("--dry_run", action="store_true", help="print the model card instead of uploading anything")
    for option in REMOVED:
        add(option, dest=option, help=argparse.SUPPRESS)
    return parser.parse_known_args(argv)


def _formats(options: argparse.Namespace) -> list[str]:
    typed = options.formats.split(",")
    unknown = [name for name in typed if name not in FILES]
    if unknown:
        raise ValueError(
            f"--formats must be some of {', '.join(FILES)}, got {', '.join(unknown)}. Separate them by commas."
        )
    for option, reason in REMOVED.items():
        if getattr(options, option) is not None:
            raise ValueError(f"{option} was removed{reason}. Pass --evidence FILE.")
    formats = [name for name in FILES if name in typed]
    if "onnx" in formats and not options.examples:
        raise ValueError("--examples must be at least 1 for an ONNX file, got 0. Pass --examples 64.")
    for name in [*(FILES[name] for name in formats), SUMMARY, CARD]:
        if (options.out / name).exists():
            raise ValueError(f"--out must be a folder without {name}, got {options.out}. Pass another --out.")
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
        raise ValueError(
            f"--result must belong to the weights in {run.checkpoint}, got {evaluation} of other weights. Pass a "
            "result of this checkpoint."
        )
    entry, unknown = model_info(run.config, result)
    path.write_text(json.dumps(entry, indent=2) + "\n")
    print(f"{path.name}: fill in {', '.join(unknown)}.")


def _check_parity(path: Path, run: "Run", batches: "Batches") -> None:
    """Refuse an exported network whose logits differ from those of the run."""
    from lightning_paf.interop.parity import MAX_NAMED, RULE, compare, load_export

    found = compare(run.model, load_export(path, run.model), batches)
    for parity in found:
        print(f"{path.name}: {parity}.")
    mismatches = [line for parity in found for line in parity.mismatches][:MAX_NAMED]
    if mismatches:
        hint = "No file was written. Pass --formats without this one, and report this as a bug."
        raise ValueError(
            "\n".join([f"Logits of {path.name} must match those of the network. {RULE}", *mismatches, hint])
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
    eps = float(options.eps or radius_from_text(str(threat.get("eps", "8/255"))))
    geometry = geometry_of(options.norm or threat.get("norm", "linf"))
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        delta = geometry.uniform(x, eps)
    yield "perturbed image", geometry.move(x, delta, eps, (0, 1)), y


def _evidence(run: "Run", options: argparse.Namespace) -> "list[Evidence]":
    """Read `--evidence`, or all evidence in the run folder for these weights."""
    from lightning_paf.evaluation.evidence import evidence_files, read
    from lightning_paf.runs.config_file import run_of
    from lightning_paf.utils.hashing import weights_fingerprint

    named, weights = options.evidence, weights_fingerprint(run.model)
    paths = [named] if named else evidence_files(run_of(run.checkpoint) / "test")
    evidence = [content for content in map(read, paths) if content.metadata["weights"] == weights]
    if named and not evidence:
        raise ValueError(
            f"--evidence must belong to the weights in {run.checkpoint}, got {named} of other weights. Pass evidence "
            "of this checkpoint."
        )
    return evidence


def _of_these_images(evidence: "list[Evidence]", samples: "Samples") -> "list[Evidence]":
    """Leave out evidence of other images: a run can have tests on several datasets."""
    found = [content for content in evidence if _matches(content, samples)]
    if evidence and not found:
        raise ValueError("Test images must be those of the evidence. Pass the --data.root of its evaluation.")
    if len(found) < len(evidence):
        print(f"Left out: {len(evidence) - len(found)} of {len(evidence)} evidence files, which are of other images.")
    return found


def _matches(content: "Evidence", samples: "Samples") -> bool:
    """Return whether the samples contain all clean images of the evidence."""
    import numpy as np

    from lightning_paf.utils.hashing import sample_fingerprints

    contained = bool(np.isin(content.ids[content.fooled], samples.ids).all())
    return contained and all(
        np.array_equal(sample_fingerprints(x, y), content.inputs[rows]) for rows, x, y in _fooled(content, samples)
    )


def _fooled(content: "Evidence", samples: "Samples") -> "Iterator[tuple[NDArray[np.int64], Tensor, Tensor]]":
    """Rows of the fooled samples in the evidence, with clean images and labels."""
    import numpy as np

    fooled = np.flatnonzero(content.fooled)
    for start in range(0, len(fooled), BATCH):
        rows = fooled[start : start + BATCH]
        yield rows, *samples.fetch(content.ids[rows])


def _adversarial_examples(evidence: "list[Evidence]", samples: "Samples") -> "Batches":
    """Adversarial examples with their labels."""
    import torch

    for content in evidence:
        for rows, x, y in _fooled(content, samples):
            images = torch.from_numpy(content.evaluated_images(rows, x.cpu().numpy()))
            yield "adversarial example", images.to(x.device), y


def _write_summary(run: "Run", path: Path) -> None:
    """Write architecture, input format and normalisation, which state dicts lack."""
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
        "input": "images (N, C, H, W) in [0, 1]; the ONNX file includes the normalisation, the state dicts do not",
        "normalisation": None if statistics is None else statistics._asdict(),
        "weights": weights_fingerprint(run.model),
    }
    path.write_text(json.dumps(summary, indent=2, default=str) + "\n")


def _write_card(run: "Run", evidence: "list[Evidence]", options: argparse.Namespace, path: Path) -> None:
    """Write the model card from the evidence for these weights, largest first."""
    from lightning_paf.interop.model_card import model_card
    from lightning_paf.utils.hashing import weights_fingerprint

    source = options.push or str(options.out / FILES["safetensors"])
    ordered = sorted(evidence, key=len, reverse=True)
    path.write_text(model_card(run.config, weights_fingerprint(run.model), ordered, source))


def _push(options: argparse.Namespace, names: list[str]) -> None:
    """Upload the written files, or print the card."""
    if options.dry_run:
        print(f"Not uploaded to {options.push} (--dry_run): {', '.join(names)}.\n\n{(options.out / CARD).read_text()}")
        return
    from huggingface_hub import HfApi

    from lightning_paf.utils.terminal import clause

    api, repository = HfApi(), _repository(options.push)
    try:
        api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=options.out, allow_patterns=names)
    except Exception as error:  # of the network, the account, or the library
        raise ValueError(
            f"{options.push} cannot be written: {clause(error)}. Log in by `hf auth login`, then run hf upload "
            f"{repository} {options.out}. The files are complete."
        ) from error
    print(f"Uploaded to {options.push}.")


def _repository(source: str) -> str:
    """Return `OWNER/NAME` of `hf://OWNER/NAME`."""
    found = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)", source)
    if not found:
        raise ValueError(f"--push must be hf://OWNER/NAME, got {source}.")
    return found[1]
