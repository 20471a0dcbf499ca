"""Look for masked gradients and evaluation mistakes in a trained model; exit 1 with the evidence."""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_paf.utils.radius import radius_from_text

if TYPE_CHECKING:
    from rich.console import Console

    from lightning_paf.evaluation.checks import Finding
    from lightning_paf.types import Radius


def main(argv: list[str]) -> int:
    """Examine one checkpoint and print what was found.

    Args:
        argv: Options, see `--help`.

    Returns:
        Exit status: 0 for a clean bill, 1 where a check is not healthy.

    Raises:
        ValueError: The checkpoint, the data or the threat model cannot be used.
    """
    options, rest = _parser().parse_known_args(argv)
    if options.json and not options.json.parent.is_dir():  # now, not after the examination
        raise ValueError(f"The folder of --json {options.json} does not exist. Make it, or pass another file.")
    import numpy as np
    from rich.console import Console

    from lightning_paf.evaluation.checks.run import examine
    from lightning_paf.loading import load_run

    run = load_run(options.ckpt, options.config, options.device, rest)
    surrogate = load_run(options.surrogate, None, options.device, rest).model if options.surrogate else None
    samples = run.samples(options.examples)
    x, y = samples.fetch(np.asarray(samples.ids))
    eps = run.module.attack.eps if options.eps is None else options.eps
    norm = options.norm or run.module.attack.norm
    with _progress() as progress:
        findings = examine(
            run.model,
            x,
            y,
            eps=eps,
            norm=norm,
            seed=options.seed,
            surrogate=surrogate,
            spec=run.datamodule.spec,
            batch_size=options.batch_size,
            progress=progress,
        )
    described = _describe(findings, options, eps, norm, len(y))
    _print(Console(highlight=False), findings, described)
    if options.json:
        options.json.write_text(json.dumps(described, indent=2) + "\n")
    return 0 if described["healthy"] else 1


def _parser() -> argparse.ArgumentParser:
    from lightning_paf.loading import add_run_arguments

    parser = argparse.ArgumentParser(
        "lightning-paf doctor",
        description=__doc__,
        epilog="Options of `fit` may follow, such as --data.root DIR. The clean bill says that nothing was found to "
        "make a verdict worthless; it does not say that the model is robust.",
        allow_abbrev=False,
    )
    add_run_arguments(parser)
    parser.add_argument("--examples", type=int, default=100, help="test images to look at, the first ones")
    parser.add_argument("--eps", type=_radius, help="such as 8/255; default: that of the training")
    parser.add_argument("--norm", choices=["linf", "l2"], help="default: that of the training")
    parser.add_argument("--surrogate", type=Path, help="checkpoint of another run, to transfer attacks from")
    parser.add_argument("--batch_size", type=int, default=128, help="images in a forward pass")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument("--json", type=Path, help="write all findings with their numbers")
    return parser


def _radius(text: str) -> "Radius":
    try:
        return radius_from_text(text) if "/" in text else float(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"eps is a number such as 8/255 or 0.5, but is {text!r}") from None


@contextmanager
def _progress() -> "Iterator[Callable[[str], None]]":
    """A bar on standard error; gives what `examine` calls before each check."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from lightning_paf.evaluation.checks.run import SYMPTOMS

    columns = (TextColumn("{task.description:<20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=len(SYMPTOMS), completed=-1)

        def advance(check: str) -> None:
            bar.update(task, description=check, advance=1)

        yield advance


def _describe(
    findings: "Sequence[Finding]", options: argparse.Namespace, eps: "Radius", norm: str, examples: int
) -> dict[str, Any]:
    """Everything that was found, ready for JSON."""
    from lightning_paf.attacks.base import radius_text
    from lightning_paf.evaluation.checks import smallest_gain
    from lightning_paf.evaluation.checks.run import SYMPTOMS

    return {
        "healthy": all(finding.healthy for finding in findings),
        "checkpoint": str(options.ckpt),
        "eps": radius_text(eps),
        "norm": norm,
        "examples": examples,
        "seed": options.seed,
        "smallest_visible_gain": smallest_gain(examples),
        "findings": [asdict(finding) for finding in findings],
        "not_examined": [symptom.name for symptom in SYMPTOMS[len(findings) :]],
    }


def _print(console: "Console", findings: "Sequence[Finding]", described: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"{described['norm']} eps {described['eps']}, {described['examples']} test images")
    table.add_column("check", no_wrap=True)
    table.add_column("healthy?")
    table.add_column("evidence", overflow="fold")
    for finding in findings:
        mark = "yes" if finding.healthy else "[bold red]NO[/]"
        table.add_row(finding.check, mark, escape(finding.evidence))
    console.print(table)
    for finding in findings:
        if not finding.healthy:
            console.print(
                f"\n[bold]{finding.check}[/]: {escape(finding.evidence)}.\n{finding.why}\n{escape(finding.remedy)}"
            )
    if described["not_examined"]:
        names = ", ".join(described["not_examined"])
        console.print(f"\nNot examined, since {findings[-1].check} makes it meaningless: {names}.")
    smallest = f"{100 * described['smallest_visible_gain']:.0f}"
    scope = f"With {described['examples']} images, one attack shows to be better than another from {smallest} points."
    if described["healthy"]:
        console.print(f"\nClean bill: no sign of masked gradients or of a mistake. {scope}")
    else:
        ill = sum(not finding.healthy for finding in findings)
        console.print(f"\n{ill} of {len(findings)} checks are not healthy: do not trust robust accuracies yet. {scope}")
