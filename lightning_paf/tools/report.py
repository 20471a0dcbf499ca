"""Write one HTML file for each evaluation of a run: verdicts, attacks, classes, images, activations, fingerprints."""

import argparse
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_paf.evaluation.receipt_content import Receipt
    from lightning_paf.evaluation.report_pictures import Example
    from lightning_paf.evaluation.result import EvaluationResult
    from lightning_paf.evaluation.samples import Samples
    from lightning_paf.evaluation.statistics import Accuracy
    from lightning_paf.loading import Run

PICTURED = 256
"""Clean images that give the activations their inputs."""

STEPS = 20
"""Of the PGD that makes images again where no receipt holds them."""

RECEIPT = ".receipt.safetensors"


def main(argv: list[str]) -> int:
    """Write the reports.

    Args:
        argv: Options, see `--help`.

    Returns:
        Exit status 0.

    Raises:
        ValueError: An input cannot be read, or belongs to another checkpoint or other images.
    """
    options, rest = _parse(argv)
    evaluations = [found for path in options.inputs for found in _evaluations(path)]
    if options.out and len(evaluations) > 1:
        names = ", ".join(evaluation.stem for evaluation in evaluations)
        raise ValueError(f"--out is one file, but there are {len(evaluations)} evaluations: {names}. Name one of them.")
    runs: dict[Path | None, Run | None] = {None: None}  # each checkpoint is loaded once
    for evaluation in evaluations:
        checkpoint = options.ckpt or _own_checkpoint(evaluation, options.inputs)
        if checkpoint is not None and checkpoint not in runs:
            runs[checkpoint] = _load(checkpoint, options, rest)
        run = runs[checkpoint]
        path = options.out or evaluation.folder / f"{evaluation.stem}.html"
        _write(path, evaluation, run, options.curve)
        result = evaluation.result
        print(f"{path}: robust {result.robust}, clean {result.clean}; {path.stat().st_size / 1024:.0f} KiB")
    return 0


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    from lightning_paf.loading import describe_fit_options

    parser = argparse.ArgumentParser("lightning-paf report", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "inputs", nargs="+", type=Path, metavar="RUN|RESULT.json|RECEIPT", help="run folder, or files that `test` wrote"
    )
    parser.add_argument(
        "--ckpt",
        "--ckpt_path",
        type=Path,
        help="for images and activations (default: in checkpoints/ of the run, the one that was tested, or last.ckpt)",
    )
    parser.add_argument("--config", "-c", type=Path, help="default: config.yaml of the checkpoint's run")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--out", type=Path, help="HTML file (default: beside the result, with its name)")
    parser.add_argument(
        "--curve",
        type=Path,
        help="JSON or PNG of `lightning-paf curve` (default: curve/curve_NORM.json of the run, if it is there)",
    )
    describe_fit_options(parser)
    return parser.parse_known_args(argv)


@dataclass(frozen=True)
class Evaluation:
    """What `test` wrote about one evaluation.

    Attributes:
        folder: Where it lies.
        stem: What its files begin with.
        result: The verdicts.
        receipt: The evidence, if there is any.
    """

    folder: Path
    stem: str
    result: "EvaluationResult"
    receipt: "Receipt | None"


def _evaluations(path: Path) -> Iterator[Evaluation]:
    """All evaluations of a run or a test folder, or that of one file; result and receipt go together by their names."""
    if not path.is_dir():
        yield _evaluation(path)
        return
    folder = path / "test" if (path / "test").is_dir() else path
    files = {file.name.removesuffix(RECEIPT): file for file in sorted(folder.glob(f"*{RECEIPT}"))}
    files |= {file.stem: file for file in sorted(folder.glob("*.json")) if '"verdicts"' in file.read_text()}
    if not files:
        raise ValueError(f"There is no evaluation in {folder}. Run `lightning-paf test --ckpt_path CKPT` first.")
    yield from map(_evaluation, files.values())


def _evaluation(path: Path) -> Evaluation:
    from lightning_paf.evaluation.receipt import read_receipt
    from lightning_paf.evaluation.report_evidence import result_of
    from lightning_paf.evaluation.result import EvaluationResult

    if not path.is_file():
        raise ValueError(f"There is no {path}. Pass a run folder, or a file that `lightning-paf test` wrote.")
    stem = path.name.removesuffix(".json").removesuffix(RECEIPT)
    written, receipt_path = path.with_name(f"{stem}.json"), path.with_name(stem + RECEIPT)
    if path.suffix != ".json":
        receipt_path = path
    receipt = read_receipt(receipt_path) if receipt_path.is_file() else None
    if not written.is_file():
        assert receipt is not None  # `path` is one of the two
        return Evaluation(path.parent, stem, result_of(receipt, stem), receipt)
    try:
        result = EvaluationResult.load(written)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{written} is no result of `lightning-paf test`: {error!r}. Pass one.") from error
    _check_pair(written, result, receipt)
    return Evaluation(path.parent, stem, result, receipt)


def _check_pair(path: Path, result: "EvaluationResult", receipt: "Receipt | None") -> None:
    """A result and a receipt of another evaluation, left from another day, must not be mixed."""
    import numpy as np

    if receipt is not None and not np.array_equal(result.verdicts[result.verdicts > 0], receipt.verdicts):
        raise ValueError(
            f"{path} and its receipt hold different verdicts. Pass one of them after moving it away from the other, "
            "or test again."
        )


def _own_checkpoint(evaluation: Evaluation, inputs: list[Path]) -> Path | None:
    """The checkpoint that was tested, as far as the result names it; none of untrained weights."""
    weights = evaluation.result.weights
    if weights is None:
        return _last_checkpoint(inputs)
    if weights.untrained:
        return None
    named = evaluation.folder.resolve().parent / "checkpoints" / weights.file
    return named if named.is_file() else _last_checkpoint(inputs)


def _last_checkpoint(inputs: list[Path]) -> Path | None:
    """That of the first run among the inputs, or of the run that the first file lies in."""
    folders = [path if path.is_dir() else path.parent for path in inputs]
    places = [place / "checkpoints" / "last.ckpt" for folder in folders for place in (folder, folder.resolve().parent)]
    return next((place for place in places if place.is_file()), None)


def _load(checkpoint: Path, options: argparse.Namespace, rest: list[str]) -> "Run":
    from lightning_paf.loading import load_run

    return load_run(checkpoint, options.config, options.device, rest)


def _write(path: Path, evaluation: Evaluation, run: "Run | None", curve: Path | None) -> None:
    from lightning_paf.evaluation.report import write_report

    result, shown = evaluation.result, {}
    if run is not None:
        samples = run.samples()
        _check_model(evaluation, run)
        result = _labelled(result, samples)
        shown = {
            **_examples(replace(evaluation, result=result), run, samples),
            "model": run.model,
            "images": samples.fetch(samples.ids[:PICTURED])[0],
        }
    points, note = _curve(evaluation, curve)
    write_report(
        path,
        result=result,
        title=evaluation.folder.resolve().parent.name,
        class_names=_class_names(evaluation, run),
        security_curve=points,
        curve_note=note,
        origin=_origin(evaluation, run),
        **shown,
    )


def _check_model(evaluation: Evaluation, run: "Run") -> None:
    from lightning_paf.evaluation.fingerprint import weights_fingerprint

    judged = evaluation.result.fingerprints.get("model")
    if judged is not None and judged != weights_fingerprint(run.model):
        raise ValueError(
            f"{evaluation.stem} judged other weights than those of {run.checkpoint}. Pass the --ckpt that was tested."
        )


def _labelled(result: "EvaluationResult", samples: "Samples") -> "EvaluationResult":
    """With the labels, which older results leave out."""
    import numpy as np

    if result.labels is not None:
        return result
    ids = np.arange(len(result.verdicts)) if result.ids is None else result.ids
    parts = [samples.fetch(ids[first : first + 1000])[1].cpu().numpy() for first in range(0, len(ids), 1000)]
    return replace(result, labels=np.concatenate(parts))


def _examples(evaluation: Evaluation, run: "Run", samples: "Samples") -> dict[str, Any]:
    from fractions import Fraction

    from lightning_paf.attacks import PGD
    from lightning_paf.evaluation.report_evidence import attacked_again, receipt_examples, receipt_flips

    if evaluation.receipt is not None:
        examples = receipt_examples(evaluation.receipt, samples)
        _check_images(evaluation, examples, run)
        return {"examples": examples, "flips": receipt_flips(evaluation.receipt, run.model.num_classes)}
    threat = evaluation.result.attack
    eps = Fraction(threat["eps"])
    attack = PGD(eps, norm=threat["norm"], step_size=eps / 4, steps=STEPS, best=True)
    again = f"No receipt holds the images of this evaluation: PGD with {STEPS} steps made these anew."
    return {"examples": attacked_again(evaluation.result, run.model, attack, samples), "examples_note": again}


def _check_images(evaluation: Evaluation, examples: "list[Example]", run: "Run") -> None:
    """Perturbations make sense on the images that they were made for, and on no others."""
    import numpy as np
    import torch

    from lightning_paf.evaluation.fingerprint import sample_fingerprints

    if not examples or evaluation.receipt is None:
        return
    x = torch.stack([example.clean for example in examples])
    y = torch.tensor([example.label for example in examples])
    places = {int(sample): place for place, sample in enumerate(evaluation.receipt.ids)}
    known = evaluation.receipt.inputs[[places[example.id] for example in examples]]
    if not np.array_equal(sample_fingerprints(x, y), known):
        raise ValueError(
            f"The images of {run.datamodule.spec.name} are not those that {evaluation.stem} was judged on. Pass the "
            "--data.root of the evaluation."
        )


def _curve(evaluation: Evaluation, path: Path | None) -> "tuple[list[tuple[float, Accuracy]] | bytes, str]":
    """Points of the security curve, or a picture of it; and its alarms."""
    import json

    from lightning_paf.evaluation.statistics import exact_accuracy

    norm = evaluation.result.attack.get("norm")
    place = path or evaluation.folder.resolve().parent / "curve" / f"curve_{norm}.json"
    if not place.is_file():
        if path is not None:
            raise ValueError(f"There is no {path}. Make it with `lightning-paf curve --ckpt CKPT`.")
        return [], ""
    if place.suffix == ".png":
        return place.read_bytes(), ""
    try:
        content = json.loads(place.read_text())
        points = [(p["eps_value"], exact_accuracy(p["robust"], p["total"])) for p in content["points"]]
        alarms = " ".join(content.get("check", {}).get("alarms", []))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{place} is no curve of `lightning-paf curve`: {error!r}. Pass its JSON or PNG.") from error
    if content.get("norm") != norm:
        raise ValueError(f"{place} measures eps in {content.get('norm')}, but the evaluation in {norm}. Pass another.")
    return points, f"Alarm: {alarms}" if alarms else ""


def _class_names(evaluation: Evaluation, run: "Run | None") -> tuple[str, ...]:
    from lightning_paf.evaluation.report_evidence import names_of

    if run is not None:
        return tuple(names_of(run.datamodule.spec.name))
    return tuple(names_of(evaluation.receipt.manifest["dataset"])) if evaluation.receipt is not None else ()


def _origin(evaluation: Evaluation, run: "Run | None") -> Any:
    from lightning_paf.evaluation.report import Origin

    receipt = evaluation.receipt
    checkpoint, weights = str(run.checkpoint) if run is not None else "CHECKPOINT", evaluation.result.weights
    facts = {"Checkpoint": str(weights or checkpoint)} if weights is not None or run is not None else {}
    facts |= {"Dataset": run.datamodule.spec.name} if run is not None else {}
    if receipt is None:
        return Origin(facts)
    path = evaluation.folder / (evaluation.stem + RECEIPT)
    manifest, config = receipt.manifest, receipt.manifest["config"]
    hashes = {"receipt": manifest["sha256"]} | ({} if config is None else {"config": config["sha256"]})
    verify = shlex.join(["lightning-paf", "verify", str(path), "--ckpt", checkpoint])
    return Origin(facts, hashes, manifest["versions"], verify)
