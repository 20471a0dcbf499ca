"""How well a class is protected: its accuracy clean and under attacks, and that of the others."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lightning_paf.analysis.protection import Protection
    from lightning_paf.attacks import Attack
    from lightning_paf.loading import Run

AT_ONCE = 512
"""Images that are read together."""


def main(argv: list[str]) -> int:
    """Attack the test images, and print a table for each run.

    Args:
        argv: Options, see `--help`.

    Raises:
        ValueError: An option makes no sense, or a run cannot be read.
    """
    options, rest = _parse(argv)
    if len(options.protected) != len(options.ckpt):
        raise ValueError(
            f"Each run has its protected class, but --ckpt names {len(options.ckpt)} and --protected "
            f"{len(options.protected)}. Pass as many of one as of the other."
        )
    from lightning_paf.analysis.protection import check_protected, mean_protection
    from lightning_paf.loading import load_run
    from lightning_paf.utils.files import explained, write_whole

    runs = [load_run(checkpoint, options.config, options.device, rest) for checkpoint in options.ckpt]
    for run, label in zip(runs, options.protected, strict=True):  # all, before the first is attacked
        check_protected(_labels(run, options.examples), label)
    found: dict[str, list[Protection]] = {}
    for run, label in zip(runs, options.protected, strict=True):
        print(f"{run.checkpoint}: class {label} protected")
        print(f"  {'':12} {'class':>7} {'others':>7} {'all':>7} {'taken for it':>13}")
        for name, row in _rows(run, label, options).items():
            found.setdefault(name, []).append(row)
            shares = f"{100 * row.own:6.1f}% {100 * row.others:6.1f}% {100 * row.overall:6.1f}%"
            print(f"  {name:12} {shares} {100 * row.taken:12.1f}%")
    if len(options.ckpt) > 1:
        means = {name: 100 * mean_protection(rows) for name, rows in found.items()}
        print("I, the mean over runs of the protected class: ", end="")
        print(", ".join(f"{name} {mean:.1f}%" for name, mean in means.items()))
    if options.json:
        content = {name: [asdict(row) for row in rows] for name, rows in found.items()}
        with explained(options.json, "the file of --json"):
            options.json.parent.mkdir(parents=True, exist_ok=True)
            write_whole(options.json, (json.dumps(content, indent=2) + "\n").encode())
    return 0


def _labels(run: "Run", examples: int | None) -> "NDArray[np.int64]":
    """True classes (n,) of the test images that are attacked."""
    import numpy as np

    samples = run.samples(examples)
    parts = [samples.ids[start : start + AT_ONCE] for start in range(0, len(samples), AT_ONCE)]
    return np.concatenate([samples.fetch(ids)[1].cpu().numpy() for ids in parts])


def _rows(run: "Run", label: int, options: argparse.Namespace) -> "dict[str, Protection]":
    from lightning_paf.analysis.protection import Protection, protection
    from lightning_paf.attacks import FGSM, PGD, AutoAttack, Restarts
    from lightning_paf.evaluation.evaluate import Evaluation
    from lightning_paf.functional.losses import margin

    trained = run.module.attack
    eps: Any = trained.eps if options.eps is None else options.eps
    pgd = PGD(eps, step_size=float(eps) / 8, steps=20, norm=trained.norm, loss=margin)
    attacks: dict[str, Attack] = {"fgsm": FGSM(eps, norm=trained.norm), "pgd": Restarts(pgd, 3)}
    if options.autoattack:
        attacks["autoattack"] = AutoAttack(eps, norm=trained.norm)
    samples, rows = run.samples(options.examples), dict[str, Protection]()
    for name, attack in attacks.items():
        result = Evaluation(run.model, attack, samples, seed=options.seed).run()
        rows.setdefault("clean", protection(result.labels, result.predictions, label))
        rows[name] = protection(result.labels, result.adversarial, label)
    return rows


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    from lightning_paf.loading import add_model_arguments

    parser = argparse.ArgumentParser("lightning-paf protected", description=__doc__)
    parser.add_argument("--ckpt", type=Path, nargs="+", required=True, help="e.g. RUN/checkpoints/last.ckpt; several")
    parser.add_argument("--protected", type=int, nargs="+", required=True, help="class of each of them")
    add_model_arguments(parser)
    parser.add_argument("--eps", type=float, help="default: that of the training")
    parser.add_argument("--examples", type=int, help="how many test images (default: all)")
    parser.add_argument("--autoattack", action="store_true", help="by AutoAttack, too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the shares to this file, too")
    return parser.parse_known_args(argv)
