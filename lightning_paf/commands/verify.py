"""Re-check a receipt of `test`: hashes, pixel range, eps, and that the model is wrong about every broken sample."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_paf.evaluation.evidence.verify import Verification
    from lightning_paf.evaluation.evidence.write import Receipt
    from lightning_paf.loading import Run

MOST_FINDINGS = 20
"""Findings that are printed of each check."""


def main(argv: list[str]) -> int:
    """Check and print.

    Args:
        argv: Options, see `--help`; `--data.root` and other options of `fit` may be among them.

    Returns:
        Exit status: 0 if everything holds, else 1.

    Raises:
        ValueError: The receipt is damaged or forged, or a file is missing.
    """
    from lightning_paf.loading import add_run_arguments, load_run

    parser = argparse.ArgumentParser("lightning-paf verify", description=__doc__, allow_abbrev=False)
    parser.add_argument("receipt", type=Path, help="file of `test`, e.g. RUN/test/autoattack.evidence.safetensors")
    add_run_arguments(parser)
    options, rest = parser.parse_known_args(argv)
    from lightning_paf.evaluation.evidence.write import read_receipt

    receipt = read_receipt(options.receipt)
    run = load_run(options.ckpt, options.config, options.device, rest)
    config = options.config or options.ckpt.parent.parent / "config.yaml"
    verification = _verify(receipt, run, config.read_text())
    _print(options.receipt, receipt, verification)
    return 0 if verification.ok else 1


def _verify(receipt: "Receipt", run: "Run", config_text: str) -> "Verification":
    from rich.console import Console
    from rich.progress import Progress

    from lightning_paf.evaluation.evidence.verify import verify

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("Checking samples", total=len(receipt))
        return verify(
            receipt, run.model, run.samples(), config_text, lambda samples: progress.advance(task, float(samples))
        )


def _print(path: Path, receipt: "Receipt", verification: "Verification") -> None:
    from collections import defaultdict

    from rich.console import Console
    from rich.table import Table

    from lightning_paf.evaluation.evidence.verify import CHECKS

    manifest, findings = receipt.manifest, defaultdict(list)
    for finding in verification.findings:
        findings[finding.check].append(finding)
    print(
        f"{path}: {len(receipt)} samples of {manifest['dataset']}, {manifest['norm']}, eps={manifest['eps']}, "
        f"{', '.join(manifest['stages'][1:])}, seed {manifest['seed']}"
    )
    table = Table("check", "what must hold", "looked at", "result")
    for check, rule in CHECKS.items():
        failed, looked_at = len(findings[check]), verification.looked_at[check]
        result = f"[bold red]{failed} not" if failed else "[green]holds" if looked_at else "-"
        table.add_row(check, rule, str(looked_at), result)
    Console().print(table)
    for found in findings.values():
        for finding in found[:MOST_FINDINGS]:
            print(finding)
        if len(found) > MOST_FINDINGS:
            print(f"... and {len(found) - MOST_FINDINGS} more of `{found[0].check}`")
    for note in verification.notes:
        print(f"Note: {note}")
    print(verification)
