"""Compare the robust accuracy of two models by their results on the same samples."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_paf.utils.arguments import command_parser

if TYPE_CHECKING:
    from lightning_paf.evaluation.comparison import Comparison


def main(argv: list[str]) -> int:
    """Print a comparison; return 0 for any conclusion."""
    parser = command_parser("compare", __doc__)
    parser.add_argument("a", type=Path, metavar="A", help="result file of `test`, or a run folder with one")
    parser.add_argument("b", type=Path, metavar="B", help="result file or run folder to compare with A")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to this file")
    options = parser.parse_args(argv)
    from lightning_paf.evaluation.comparison import compare, load_result
    from lightning_paf.utils.files import explained, write_whole

    (path_a, a), (path_b, b) = load_result(options.a), load_result(options.b)
    comparison, attack = compare(a, b), a.attack
    for name, path, result in (("A", path_a, a), ("B", path_b, b)):
        print(f"{name}: {path}" + (f", {result.weights}" if result.weights else ""))
    print(f"{comparison.samples} samples, {attack.get('norm')} eps {attack.get('eps')}, {attack.get('attack')}\n")
    _print(comparison)
    if options.json:
        content = {"a": str(path_a), "b": str(path_b), "attack": dict(attack), **comparison.content()}
        with explained(options.json, "the --json file"):
            options.json.parent.mkdir(parents=True, exist_ok=True)
            write_whole(options.json, (json.dumps(content, indent=2) + "\n").encode())
    return 0


def _print(comparison: "Comparison") -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
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
            classes.add_row(str(row.label), str(row.total), *fractions, f"{100 * row.difference:+.1f}")
        console.print(classes)
    difference = comparison.difference
    print(f"\nDifference of robust accuracy, A - B: {difference}")
    print(f"Robust in one model only: {difference.only_first} samples in A, {difference.only_second} in B")
    print(f"McNemar's exact test: p = {comparison.p_value:.3g}")
    for note in comparison.notes:
        print(f"Note: {note}")
    print(comparison.conclusion)
