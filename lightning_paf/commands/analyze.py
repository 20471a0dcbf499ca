"""Analyse a trained run: saliency, loss concentration, weights and others."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_paf.utils.arguments import command_parser

if TYPE_CHECKING:
    from lightning_paf.analysis.base import Report


def main(argv: list[str]) -> int:
    """Run an analysis of `lightning_paf/analysis`; return 1 if it found an error."""
    from lightning_paf.utils.discovery import modules_with

    found = modules_with("analyze", Path(__file__).parents[1] / "analysis")
    parser = command_parser("analyze", __doc__)
    choices = parser.add_subparsers(metavar="NAME", required=True)
    parsers = {name: choices.add_parser(name, help=line, description=line) for name, line in found.items()}
    chosen = parsers.get(argv[0] if argv else "")
    if chosen is None:
        parser.parse_args(argv)  # prints the help and exits, or refuses the name
        return 0
    analysis = importlib.import_module(f"lightning_paf.analysis.{argv[0].replace('-', '_')}")
    if analysis.CHECKPOINTS:
        from lightning_paf.loading import add_run_arguments

        add_run_arguments(chosen, nargs=analysis.CHECKPOINTS)
    analysis.add_arguments(chosen)
    options, rest = parser.parse_known_args(argv)
    if rest and not analysis.CHECKPOINTS:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    from rich.console import Console

    from lightning_paf.loading import load_run

    kind = getattr(analysis, "KIND", "classifier")
    with Console(stderr=True, highlight=False).status("reading the run") as status:
        report = analysis.analyze(
            options, lambda path: load_run(path, options.config, options.device, rest, kind), status.update
        )
    return finish(report)


def finish(report: "Report") -> int:
    """Print the lines of a report, write its files, and return the exit status."""
    from lightning_paf.utils.files import explained, write_whole

    print("\n".join(report.lines))
    for path, content in report.files.items():
        with explained(path, "an output file"):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, content)
        print(f"Written: {path}")
    return 0 if report.passed else 1
