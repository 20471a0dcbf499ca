"""Write one HTML page for each result of a run: outcomes, sub-attacks, classes, examples, activations, fingerprints."""

import argparse
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_paf.evaluation.evidence import Evidence
    from lightning_paf.evaluation.result import EvaluationResult
    from lightning_paf.loading import Run


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
    from lightning_paf.loading import load_run

    evaluations = [found for path in options.inputs for found in _evaluations(path)]
    if options.out and len(evaluations) > 1:
        names = ", ".join(evaluation.name for evaluation in evaluations)
        raise ValueError(f"--out is one file, but there are {len(evaluations)} results: {names}. Name one of them.")
    curves = [_curve(evaluation, options.curve) for evaluation in evaluations]
    runs: dict[Path | None, Run | None] = {None: None}  # each checkpoint is loaded once
    for evaluation, curve in zip(evaluations, curves, strict=True):
        checkpoint = options.ckpt or _own_checkpoint(evaluation, options.inputs)
        if checkpoint is not None and checkpoint not in runs:
            runs[checkpoint] = load_run(checkpoint, options.config, options.device, rest)
        path = options.out or evaluation.folder / f"{evaluation.name}.html"
        _write(path, evaluation, runs[checkpoint], curve)
        result = evaluation.result
        print(f"{path}: robust {result.robust}, clean {result.clean}; {path.stat().st_size / 1024:.0f} KiB")
    return 0


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    from lightning_paf.loading import add_model_arguments

    parser = argparse.ArgumentParser("lightning-paf report", description=__doc__, allow_abbrev=False)
    kinds = "RUN|RESULT.json|EVIDENCE"
    parser.add_argument("inputs", nargs="+", type=Path, metavar=kinds, help="run folder, or files that `test` wrote")
    weights = "for images and activations (default: in checkpoints/ of the run, the one that was tested, or last.ckpt)"
    parser.add_argument("--ckpt", "--ckpt_path", type=Path, help=weights)
    add_model_arguments(parser)
    parser.add_argument("--out", type=Path, help="HTML file (default: next to the result, with its name)")
    curve = "JSON or PNG of `lightning-paf curve` (default: curve/curve_NORM.json of the run, if it exists)"
    parser.add_argument("--curve", type=Path, help=curve)
    return parser.parse_known_args(argv)


@dataclass(frozen=True)
class Evaluation:
    """Files of one evaluation that `test` wrote.

    Attributes:
        folder: Their folder.
        name: First part of their names.
        result: Outcomes.
        evidence: Path and content of the evidence file, if there is one.
    """

    folder: Path
    name: str
    result: "EvaluationResult"
    evidence: "tuple[Path, Evidence] | None"

    @classmethod
    def read(cls, folder: Path, name: str) -> "Evaluation":
        """Read result and evidence, or one of them where the other is missing."""
        import numpy as np

        from lightning_paf.evaluation.evidence import SUFFIX, read
        from lightning_paf.evaluation.report.evidence import result_of
        from lightning_paf.evaluation.result import EvaluationResult

        written, other = folder / f"{name}.json", folder / f"{name}{SUFFIX}"
        content = read(other) if other.is_file() else None
        if content is not None and not written.is_file():
            return cls(folder, name, result_of(content, name), (other, content))
        try:
            result = EvaluationResult.load(written)
            _ = result.robust, float(result.attack.get("eps_value", "nan"))  # raise where these are no numbers
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{written} is no result of `lightning-paf test`: {error!r}. Pass one.") from error
        if content is None:
            return cls(folder, name, result, None)
        if not np.array_equal(result.outcomes[result.outcomes > 0], content.outcomes):
            raise ValueError(
                f"{written} and {other.name} hold different outcomes. Pass one of them after moving it away from the "
                "other, or test again."
            )
        return cls(folder, name, result, (other, content))


def _evaluations(path: Path) -> list[Evaluation]:
    """All evaluations of a run or a test folder, or that of one file."""
    from lightning_paf.evaluation.evidence import SUFFIX, evidence_files, read

    if path.is_dir():
        folder = path / "test" if (path / "test").is_dir() else path
        files = [
            *evidence_files(folder),
            *(p for p in folder.glob("*.json") if re.search('"(outcomes|verdicts)"', p.read_text())),
        ]
        if not files:
            raise ValueError(f"There is no result in {folder}. Run `lightning-paf test --ckpt_path CKPT` first.")
    elif path.is_file() and path.name.endswith((".json", SUFFIX)):
        folder, files = path.parent, [path]
    else:
        if path.suffix == ".safetensors":
            read(path)  # gives the reason: an earlier version wrote the file, or it is of another kind
        raise ValueError(
            f"There is no result {path}. Pass a run folder, or a NAME.json or NAME{SUFFIX} that `lightning-paf test` "
            "wrote."
        )
    names = {file.name.removesuffix(".json").removesuffix(SUFFIX) for file in files}
    return [Evaluation.read(folder, name) for name in sorted(names)]


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


def _write(path: Path, evaluation: Evaluation, run: "Run | None", curve: dict[str, Any]) -> None:
    from lightning_paf.evaluation import report
    from lightning_paf.evaluation.report.evidence import supplement_of

    evidence, title = evaluation.evidence, evaluation.folder.resolve().parent.name
    if run is None:
        supplement = supplement_of(title, evidence[1].metadata["dataset"] if evidence else "", None, evidence)
    else:
        _check_model(evaluation, run)
        data = run.datamodule.spec.name
        supplement = supplement_of(title, data, run.checkpoint, evidence, run.model, run.samples())
    report.write(evaluation.result, path, replace(supplement, **curve))


def _check_model(evaluation: Evaluation, run: "Run") -> None:
    from lightning_paf.utils.hashing import weights_fingerprint

    evaluated = evaluation.result.fingerprints.get("model")
    if evaluated is not None and evaluated != weights_fingerprint(run.model):
        raise ValueError(
            f"{evaluation.name} evaluated other weights than those of {run.checkpoint}. Pass the --ckpt that was "
            "tested."
        )


def _curve(evaluation: Evaluation, path: Path | None) -> dict[str, Any]:
    """Points of the security curve, or its PNG file, and its alarms."""
    import json

    from lightning_paf.evaluation.statistics import exact_accuracy

    norm = evaluation.result.attack.get("norm")
    file = path or evaluation.folder.resolve().parent / "curve" / f"curve_{norm}.json"
    if not file.is_file():
        if path is not None:
            raise ValueError(f"There is no {path}. Make it with `lightning-paf curve --ckpt CKPT`.")
        return {}
    if file.suffix == ".png":
        return {"curve": file.read_bytes()}
    try:
        content = json.loads(file.read_text())
        points = [(float(p["eps_value"]), exact_accuracy(p["robust"], p["total"])) for p in content["points"]]
        alarms = " ".join(content.get("check", {}).get("alarms", []))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is no curve of `lightning-paf curve`: {error!r}. Pass its JSON or PNG.") from error
    if content.get("norm") != norm:
        raise ValueError(f"{file} measures eps in {content.get('norm')}, but the result in {norm}. Pass another.")
    return {"curve": points, "curve_note": f"Alarm: {alarms}" if alarms else ""}
