"""Agreement of our AutoAttack with the reference package per sample; a Markdown table.

    python benchmarks/agreement.py --cases digits_relu digits_pssilu digits_standard --images 120

Both run `standard` with its full budget and several seeds. `only ours` counts samples that are robust under all our
seeds and under none of the reference's, `only reference` the reverse, and `between seeds` samples on which the seeds of
the reference disagree.
"""

import argparse
import logging
from fractions import Fraction
from pathlib import Path

import torch
from networks import CASES
from torch import Tensor, nn

from lightning_paf.attacks import AutoAttack, ReferenceAutoAttack
from lightning_paf.nn.modes import frozen

RADII = {"linf": Fraction(1, 5), "l2": Fraction(1)}


def robust_sets(attack: type, model: nn.Module, x: Tensor, y: Tensor, options: argparse.Namespace) -> Tensor:
    """Masks of the robust samples, one per seed (S, N)."""
    found = []
    for seed in range(options.seeds):
        attacker = attack(options.eps, norm=options.norm, seed=seed, batch_size=options.batch_size)
        found.append(attacker.run(model, x, y).robust)
    return torch.stack(found)


def row(case: str, norm: str, options: argparse.Namespace) -> str:
    options.norm = norm
    options.eps = options.radius or RADII[norm]
    model, x, y = CASES[case](options)
    x, y = x[: options.images], y[: options.images]
    with frozen(model):
        ours = robust_sets(AutoAttack, model, x, y, options)
        theirs = robust_sets(ReferenceAutoAttack, model, x, y, options)
    counts = [", ".join(str(int(seed.sum())) for seed in engine) for engine in (theirs, ours)]
    only_ours = int((ours.all(0) & ~theirs.any(0)).sum())
    only_theirs = int((theirs.all(0) & ~ours.any(0)).sum())
    disputed = int((theirs.any(0) & ~theirs.all(0)).sum())
    cells = [case, f"{norm} {options.eps}", len(x), *counts, disputed, only_ours, only_theirs]
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cases", nargs="+", choices=CASES, default=["digits_relu", "digits_pssilu", "digits_standard"]
    )
    parser.add_argument("--norms", nargs="+", choices=RADII, default=list(RADII))
    parser.add_argument("--radius", type=Fraction, help="eps, instead of 1/5 in linf and 1 in l2")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=250)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="seed of the training")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("auto-attack").setLevel(logging.ERROR)  # one line for every sample without a gradient
    head = ["network", "eps", "samples", "reference robust", "ours robust", "between seeds", "only ours"]
    head += ["only reference"]
    print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    for case in options.cases:
        for norm in options.norms:
            print(row(case, norm, options), flush=True)


if __name__ == "__main__":
    main()
