"""Check a trained model for masked gradients and evaluation mistakes."""

import argparse
import json
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

from lightning_paf.utils.arguments import command_parser, number, positive
from lightning_paf.utils.radius import radius_from_text


def main(argv: list[str]) -> int:
    """Print the results for one checkpoint; return 0 if all checks passed, else 1."""
    options, rest = _parse(argv)
    if options.json and (options.json.is_dir() or not options.json.parent.is_dir()):
        raise ValueError(f"--json must be a file in an existing folder, got {options.json}. Pass another file.")
    import numpy as np
    from rich.console import Console

    from lightning_paf.attacks.base import radius_text
    from lightning_paf.evaluation.checks import CHECKS, Context, run_checks, smallest_visible_gain
    from lightning_paf.loading import load_run
    from lightning_paf.utils.files import write_whole

    run = load_run(options.ckpt, options.config, options.device, rest)
    surrogate = load_run(options.surrogate, None, options.device, rest).model if options.surrogate else None
    samples = run.samples(options.examples)
    x, y = samples.fetch(np.asarray(samples.ids))
    eps = run.module.attack.eps if options.eps is None else options.eps
    norm, spec = options.norm or run.module.attack.norm, run.datamodule.spec
    with Console(stderr=True).status("") as status:
        context = Context(run.model, x, y, eps, norm, options.seed, surrogate, spec, options.batch_size)
        results = run_checks(context, progress=lambda name: status.update(f"{name} (of {len(CHECKS)} checks)"))
    content = {
        "passed": all(result.passed for result in results),
        "checkpoint": str(options.ckpt),
        "eps": radius_text(eps),
        "norm": norm,
        "examples": len(y),
        "seed": options.seed,
        "smallest_visible_gain": smallest_visible_gain(len(y)),
        "checks": [asdict(result) for result in results],
    }
    _print(content)
    if options.json:
        write_whole(options.json, (json.dumps(content, indent=2) + "\n").encode())
    return 0 if content["passed"] else 1


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    from lightning_paf.loading import add_run_arguments

    epilog = "The exit status is 1 if a check fails. Passing all checks does not prove robustness."
    parser = command_parser("sanity-check", __doc__, epilog)
    add_run_arguments(parser)
    add = parser.add_argument
    add("--examples", type=positive, default=100, help="number of test images, the first ones")
    add("--eps", type=number(_radius, above=0), help="radius such as 8/255 (default: as in training)")
    add("--norm", choices=["linf", "l2"], help="norm of eps (default: as in training)")
    add("--surrogate", type=Path, help="checkpoint of another run, to transfer attacks from")
    add("--batch_size", type=positive, default=128, help="images in a forward pass")
    add("--seed", type=int, default=0, help="seed of all random numbers")
    add("--json", type=Path, help="write all results with their numbers")
    return parser.parse_known_args(argv)


def _radius(text: str) -> Fraction | float:
    return radius_from_text(text) if "/" in text else float(text)


def _print(content: dict[str, Any]) -> None:
    """Print a table of the results, the hints of the failed checks, and a summary."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    console, checks = Console(highlight=False), content["checks"]
    title = f"{content['norm']} eps {content['eps']}, {content['examples']} test images"
    table = Table(Column("check", no_wrap=True), Column("passed", no_wrap=True), "measured", title=title)
    marks = {True: Text("yes"), False: Text("NO", "bold red"), None: Text("skipped", "dim")}
    for check in checks:
        table.add_row(check["name"], marks[check["passed"]], Text(check["skipped"] or check["measured"]))
    console.print(table)
    failed = [check for check in checks if check["passed"] is False]
    for check in failed:
        console.print(Text.assemble("\n", (check["name"], "bold"), f": {check['hint']}"))
    summary = "All checks passed: no sign of masked gradients or of a mistake."
    if failed:
        run = sum(check["passed"] is not None for check in checks)
        summary = f"{len(failed)} of {run} checks failed: do not rely on robust accuracies yet."
    gain = f"{100 * content['smallest_visible_gain']:.0f} points"
    console.print(f"\n{summary} With {content['examples']} images, differences of {gain} or more are visible.")
