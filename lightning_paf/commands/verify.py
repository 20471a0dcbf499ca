"""Verify evidence of `test`: hashes, pixel range, eps, and fooled samples."""

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_paf.utils.arguments import command_parser
from lightning_paf.utils.terminal import printable

if TYPE_CHECKING:
    from lightning_paf.evaluation.evidence import Verification

MAX_MISMATCHES = 20
"""Maximum number of printed mismatches for each check."""


def main(argv: list[str]) -> int:
    """Verify and print; return 0 if every rule holds, else 1."""
    from lightning_paf.loading import add_run_arguments, load_run

    parser = command_parser("verify", __doc__)
    parser.add_argument(
        "evidence", type=Path, help="file of `test`, such as RUN/test/autoattack_linf_8-255.evidence.safetensors"
    )
    add_run_arguments(parser)
    options, rest = parser.parse_known_args(argv)
    from rich.console import Console
    from rich.progress import Progress

    from lightning_paf.evaluation.evidence import read, verify
    from lightning_paf.runs.config_file import run_of

    evidence = read(options.evidence)
    run = load_run(options.ckpt, options.config, options.device, rest)
    config = (options.config or run_of(options.ckpt) / "config.yaml").read_text()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("Checking samples", total=len(evidence))
        verification = verify(evidence, run.model, run.samples(), config, lambda n: progress.advance(task, n))
    _print(options.evidence, verification)
    return 0 if verification.ok else 1


def _print(path: Path, verification: "Verification") -> None:
    from rich.console import Console
    from rich.table import Table

    from lightning_paf.evaluation.evidence import CHECKS

    evidence, mismatches = verification.evidence, defaultdict(list)
    for mismatch in verification.mismatches:
        mismatches[mismatch.check].append(mismatch)
    attacks = ", ".join(map(str, evidence.metadata["sub_attacks"][1:]))
    dataset, seed = evidence.metadata["dataset"], evidence.metadata["seed"]
    _line(f"{path}: {len(evidence)} samples of {dataset}, {evidence.threat}, {attacks}, seed {seed}")
    table = Table("check", "rule", "samples", "result")
    for check, rule in CHECKS.items():
        failed, checked = len(mismatches[check]), verification.checked[check]
        result = f"[bold red]{failed} failed" if failed else "[green]holds" if checked else "-"
        table.add_row(check, rule, str(checked), result)
    Console().print(table)
    for found in mismatches.values():
        for mismatch in found[:MAX_MISMATCHES]:
            _line(mismatch)
        if len(found) > MAX_MISMATCHES:
            _line(f"... and {len(found) - MAX_MISMATCHES} more of `{found[0].check}`")
    for note in verification.notes:
        _line(f"Note: {note}")
    _line(verification)


def _line(text: object) -> None:
    """Print one line, in which text from the file cannot control the terminal."""
    print(printable(str(text)[:2000]))
