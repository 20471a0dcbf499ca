"""Compare the accuracies or scores of models by their results on the same samples."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_paf.utils.arguments import command_parser
from lightning_paf.utils.terminal import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

    from lightning_paf.evaluation.comparison import Comparison
    from lightning_paf.evaluation.comparison_table import Row
    from lightning_paf.evaluation.result import EvaluationResult


def main(argv: list[str]) -> int:
    """Print a comparison; return 0 for any conclusion."""
    parser = command_parser("compare", __doc__, "Two results are compared in detail, more of them in a table.")
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="result file of `test`, or a run folder with results"
    )
    for option, help_text in (
        ("--json", "also write the numbers to this file"),
        ("--csv", "also write the table to this file"),
        ("--figure", "draw accuracies and differences to this PNG file"),
    ):
        parser.add_argument(option, type=Path, metavar="FILE", help=help_text)
    options = parser.parse_args(argv)
    if len(options.runs) < 2:
        parser.error(f"RUN must be given at least twice, got {options.runs[0]}")
    from lightning_paf.evaluation.comparison import results_in
    from lightning_paf.evaluation.comparison_table import compare_all, draw
    from lightning_paf.evaluation.scores import score_result

    scored = {path: result for path in options.runs if (result := score_result(path)) is not None}
    if scored:
        return _compare_scores(options, scored)
    found = [results_in(path) for path in options.runs]
    detailed = len(found) == 2 and all(len(results) == 1 for results in found)
    content = _in_detail([next(iter(results.items())) for results in found]) if detailed else {}
    rows, notes = compare_all(options.runs, found)
    if not detailed:
        content = {"rows": [row.content() for row in rows], "notes": notes}
        _print_table(rows, notes)
    _write(options, [row.content() for row in rows], content, lambda: draw(rows))
    return 0


def _compare_scores(options: argparse.Namespace, results: "Mapping[Path, Mapping[str, Any]]") -> int:
    """Compare scores with those of the first model, sample by sample."""
    from rich.console import Console
    from rich.table import Table

    from lightning_paf.evaluation.comparison_table import names_of
    from lightning_paf.evaluation.scores import compare_scores, draw_scores

    if other := [path for path in options.runs if path not in results]:
        raise ValueError(
            f"All results must be of the same task as {next(iter(results))}, got another or none in {other[0]}. Pass "
            "folders of tested runs of this task."
        )
    rows = compare_scores(names_of(options.runs), [results[path] for path in options.runs])
    table = Table("score", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("model", overflow="fold")
    for title in ("mean", "difference"):
        table.add_column(title, no_wrap=True)
    for row in rows:
        table.add_row(*row.texts())
    Console(highlight=False).print(table)
    samples = len(results[options.runs[0]]["samples"])
    print(
        f"Means over {samples} samples, in brackets: Student's 95 % intervals. Difference: minus\n"
        "the first model, paired by sample. *: the interval does not contain 0."
    )
    content = [row.content() for row in rows]
    _write(options, content, {"samples": samples, "rows": content}, lambda: draw_scores(rows))
    return 0


def _in_detail(results: "list[tuple[Path, EvaluationResult]]") -> dict[str, object]:
    from lightning_paf.evaluation.comparison import compare

    (path_a, a), (path_b, b) = results
    comparison, attack = compare(a, b), a.attack
    for name, path, result in (("A", path_a, a), ("B", path_b, b)):
        print(f"{name}: {path}" + (f", {result.weights}" if result.weights else ""))
    print(f"{comparison.samples} samples, {attack.get('norm')} eps {attack.get('eps')}, {attack.get('attack')}\n")
    _print(comparison, a.class_names if a.class_names == b.class_names else ())
    return {"a": str(path_a), "b": str(path_b), "attack": dict(attack), **comparison.content()}


def _print_table(rows: "list[Row]", notes: list[str]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    for evaluation in dict.fromkeys(row.evaluation for row in rows):
        console.print(_table([row for row in rows if row.evaluation == evaluation]), "")
    print(
        "In brackets: 95 % intervals. Difference: points of robust accuracy, minus the\n"
        "first model, on common samples. *: p <= 0.05 in McNemar's exact test."
    )
    for note in notes:
        print(f"Note: {note}")


def _table(rows: "list[Row]") -> "Table":
    from rich.table import Table

    from lightning_paf.evaluation.comparison import SIGNIFICANCE

    counts = " or ".join(dict.fromkeys(f"{row.samples:,}" for row in rows))
    table = Table(
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        title=f"{rows[0].evaluation}, {counts} samples",
        title_justify="left",
    )
    table.add_column("model", overflow="fold")
    for title in ("clean", "robust", "difference"):
        table.add_column(title, no_wrap=True)
    for row in rows:
        difference = str(row.difference or "-").replace(" points", "")
        mark = " *" if row.comparison and row.comparison.p_value <= SIGNIFICANCE else ""
        table.add_row(row.model, str(row.clean), str(row.robust), difference + mark)
    return table


def _write(
    options: argparse.Namespace, rows: Sequence[Mapping[str, Any]], content: object, draw: "Callable[[], Figure]"
) -> None:
    """Write the files that the options name."""
    from lightning_paf.utils.figures import figure_png
    from lightning_paf.utils.files import csv_text, explained, write_whole

    files: dict[str, Callable[[], bytes]] = {
        "json": lambda: f"{json.dumps(content, indent=2)}\n".encode(),
        "csv": lambda: csv_text(rows).encode(),
        "figure": lambda: figure_png(draw()),
    }
    for name, produced in files.items():
        if path := getattr(options, name):
            with explained(path, f"the --{name} file"):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, produced())


def _print(comparison: "Comparison", names: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    accuracies = Table("accuracy, 95 % interval", "A", "B")
    accuracies.add_row("clean", *map(str, comparison.clean))
    accuracies.add_row("robust", *map(str, comparison.robust))
    console.print(accuracies)
    if comparison.classes:
        classes = Table("class", "samples", "A robust", "B robust", "A - B", title="Robust accuracy by class")
        for column in classes.columns:
            column.justify = "right"
        for row in comparison.classes:
            fractions = (f"{100 * robust / row.total:.1f} %" for robust in row.robust)
            name = printable(names[row.label]) if 0 <= row.label < len(names) else str(row.label)
            classes.add_row(name, str(row.total), *fractions, f"{100 * row.difference:+.1f}")
        console.print(classes)
    difference = comparison.difference
    print(f"\nDifference of robust accuracy, A - B: {difference}")
    print(f"Robust in one model only: {difference.only_first} samples in A, {difference.only_second} in B")
    print(f"McNemar's exact test: p = {comparison.p_value:.3g}")
    for note in comparison.notes:
        print(f"Note: {note}")
    print(comparison.conclusion)
