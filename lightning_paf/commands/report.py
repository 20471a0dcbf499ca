"""Write one HTML page for each result of a run."""

import argparse
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_paf.utils.arguments import command_parser

if TYPE_CHECKING:
    from lightning_paf.evaluation.evidence import Evidence
    from lightning_paf.evaluation.result import EvaluationResult
    from lightning_paf.loading import Run


def main(argv: list[str]) -> int:
    """Write the reports."""
    options, rest = _parse(argv)
    from lightning_paf.loading import load_run

    tested = [found for path in options.inputs for found in _tested(path)]
    if options.out and len(tested) > 1:
        names = ", ".join(one.name for one in tested)
        raise ValueError(f"--out must be for one result, got {len(tested)}: {names}. Pass one of the result files.")
    curves = [_curve(one, options.curve) for one in tested]
    runs: dict[Path | None, Run | None] = {None: None}  # each checkpoint is loaded once
    failures: list[str] = []
    for one, curve in zip(tested, curves, strict=True):
        checkpoint = options.ckpt or _tested_checkpoint(one, options.inputs)
        if checkpoint is not None and checkpoint not in runs:
            runs[checkpoint] = load_run(checkpoint, options.config, options.device, rest)
        path = options.out or one.folder / f"{one.name}.html"
        try:
            _write(path, one, runs[checkpoint], curve)
        except ValueError as error:  # such as the images of another --data.root; the other results still get pages
            failures.append(f"{one.folder / one.name}: {error}")
            continue
        result = one.result
        print(f"{path}: robust {result.robust}, clean {result.clean}; {path.stat().st_size / 1024:.0f} KiB")
    if failures:
        raise ValueError("\n".join(failures))
    return 0


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    from lightning_paf.loading import add_model_arguments

    parser = command_parser("report", __doc__)
    kinds = "RUN|RESULT.json|EVIDENCE"
    parser.add_argument("inputs", nargs="+", type=Path, metavar=kinds, help="run folder, or files that `test` wrote")
    parser.add_argument(
        "--ckpt",
        "--ckpt_path",
        type=Path,
        help="checkpoint for images and activations (default: the tested one in checkpoints/ of the run, else "
        "last.ckpt)",
    )
    add_model_arguments(parser)
    parser.add_argument("--out", type=Path, help="HTML file (default: next to the result, with its name)")
    parser.add_argument(
        "--curve",
        type=Path,
        help="JSON or PNG of `lightning-paf curve` (default: curve/curve_NORM.json of the run, if it exists)",
    )
    return parser.parse_known_args(argv)


@dataclass(frozen=True)
class Tested:
    """Files of one evaluation that `test` wrote.

    Attributes:
        folder: Their folder.
        name: First part of their names.
        result: Content of the result file, or of the evidence if there is none.
        evidence: Path and content of the evidence file, if there is one.
    """

    folder: Path
    name: str
    result: "EvaluationResult"
    evidence: "tuple[Path, Evidence] | None"

    @classmethod
    def read(cls, folder: Path, name: str) -> "Tested":
        """Read result and evidence, or one of them where the other is missing."""
        import numpy as np

        from lightning_paf.evaluation.evidence import SUFFIX, read
        from lightning_paf.evaluation.report.report import result_of
        from lightning_paf.evaluation.result import EvaluationResult

        written, other = folder / f"{name}.json", folder / f"{name}{SUFFIX}"
        content = read(other) if other.is_file() else None
        if content is not None and not written.is_file():
            return cls(folder, name, result_of(content, name), (other, content))
        result = EvaluationResult.load(written)
        if content is None:
            return cls(folder, name, result, None)
        if not np.array_equal(result.outcomes[result.outcomes > 0], content.outcomes):
            raise ValueError(
                f"{written} and {other.name} must have the same outcomes, got different ones. Keep one of them, "
                "or run `lightning-paf test` again."
            )
        return cls(folder, name, result, (other, content))


def _tested(path: Path) -> list[Tested]:
    """All evaluations in a run or test folder, or that of one file."""
    from lightning_paf.evaluation.evidence import SUFFIX, evidence_files, read

    if path.is_dir():
        folder = path / "test" if (path / "test").is_dir() else path
        results = [
            file
            for file in folder.glob("*.json")
            if re.search('"(outcomes|verdicts)"', file.read_text(errors="replace"))
        ]
        files = [*evidence_files(folder), *results]
        if not files:
            raise ValueError(f"There is no result in {folder}. Run `lightning-paf test --ckpt_path CKPT` first.")
    elif path.is_file() and path.name.endswith((".json", SUFFIX)):
        folder, files = path.parent, [path]
    else:
        if path.suffix == ".safetensors":
            read(path)  # raises with the reason
        raise ValueError(
            f"There is no result {path}. Pass a run folder, or a NAME.json or NAME{SUFFIX} that `lightning-paf test` "
            "wrote."
        )
    names = {file.name.removesuffix(".json").removesuffix(SUFFIX) for file in files}
    return [Tested.read(folder, name) for name in sorted(names)]


def _tested_checkpoint(one: Tested, inputs: list[Path]) -> Path | None:
    """Find the tested checkpoint, else `last.ckpt`; None for untrained weights."""
    weights = one.result.weights
    if weights is not None and weights.untrained:
        return None
    named = [] if weights is None else [one.folder.resolve().parent / "checkpoints" / weights.file]
    folders = [path if path.is_dir() else path.parent for path in inputs]
    runs = [run for folder in folders for run in (folder, folder.resolve().parent)]
    candidates = [*named, *(run / "checkpoints" / "last.ckpt" for run in runs)]
    return next((path for path in candidates if path.is_file()), None)


def _write(path: Path, one: Tested, run: "Run | None", curve: dict[str, Any]) -> None:
    from lightning_paf.evaluation import report
    from lightning_paf.evaluation.report.report import supplement_of
    from lightning_paf.specs import known_class_names
    from lightning_paf.utils.hashing import weights_fingerprint

    evidence, title, names = one.evidence, one.folder.resolve().parent.name, one.result.class_names
    if run is None:
        dataset = evidence[1].metadata["dataset"] if evidence else ""
        supplement = supplement_of(title, dataset, names or known_class_names(dataset), None, evidence)
    else:
        evaluated, here = one.result.fingerprints.get("model"), weights_fingerprint(run.model)
        if evaluated not in (None, here):
            raise ValueError(
                f"--ckpt must hold the weights that {one.name} evaluated, got {run.checkpoint} with others. Pass those."
            )
        spec = run.datamodule.spec
        names = names or spec.class_names
        supplement = supplement_of(title, spec.name, names, run.checkpoint, evidence, run.model, run.samples())
    report.write(one.result, path, replace(supplement, **curve))


def _curve(one: Tested, path: Path | None) -> dict[str, Any]:
    """Points of the security curve, or its PNG file, and its alarms."""
    from lightning_paf.evaluation.statistics import exact_accuracy
    from lightning_paf.utils.files import parse_json

    norm = one.result.attack.get("norm")
    file = path or one.folder.resolve().parent / "curve" / f"curve_{norm}.json"
    if not file.is_file():
        if path is not None:
            raise ValueError(f"--curve must exist, got {path}. Write it with `lightning-paf curve --ckpt CKPT`.")
        return {}
    if file.suffix == ".png":
        return {"curve": file.read_bytes()}
    try:
        content = parse_json(file.read_text())
        points = [(float(p["eps_value"]), exact_accuracy(p["robust"], p["total"])) for p in content["points"]]
        alarms = " ".join(content.get("check", {}).get("alarms", []))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"--curve must be written by `lightning-paf curve`, got {file}: {error!r}. Pass its JSON or PNG file."
        ) from error
    if content.get("norm") != norm:
        found = content.get("norm")
        raise ValueError(f"The norm of --curve must be {norm}, got {found} in {file}. Pass a curve of {norm}.")
    return {"curve": points, "curve_note": f"Alarm: {alarms}" if alarms else ""}
