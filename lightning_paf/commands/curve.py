"""Compute robust accuracy over the size of the perturbation, and check the attack."""

import argparse
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_paf.utils.arguments import command_parser, positive
from lightning_paf.utils.radius import radius_from_text

if TYPE_CHECKING:
    from lightning_paf.analysis.security_curve import AttackAt, SecurityCurve
    from lightning_paf.analysis.security_curve_check import Recheck
    from lightning_paf.attacks import Attack
    from lightning_paf.types import Norm, Radius

EPS = {"linf": Fraction(8, 255), "l2": Fraction(128, 255)}
"""Base of the default grid if the model was not trained in this norm."""

MULTIPLES = [Fraction(n, 4) for n in (1, 2, 3, 4, 5, 6, 8)]


def main(argv: list[str]) -> int:
    """Compute and check a curve, and write its files; return 1 after an alarm."""
    options, rest = _parse(argv)
    from rich.console import Console

    from lightning_paf.analysis.base import Report, folder_files
    from lightning_paf.analysis.security_curve import fixed_eps, minimum_norm
    from lightning_paf.analysis.security_curve_check import draw_curve, recheck
    from lightning_paf.attacks.fab import FAB
    from lightning_paf.commands.analyze import finish
    from lightning_paf.loading import load_run
    from lightning_paf.runs.config_file import run_of

    norm, seed = options.norm, options.seed
    with Console(stderr=True, highlight=False).status("reading the run") as status:
        run = load_run(options.ckpt, options.config, options.device, rest)
        training = run.module.attack
        trained = training.eps if training.norm == norm else None
        base = trained or EPS[norm]
        exact = Fraction if isinstance(base, Fraction) else float
        grid = options.grid or [exact(multiple * Fraction(str(base))) for multiple in MULTIPLES]
        attack, samples = _attack_at(norm, options.steps, run.model.num_classes), run.samples(options.examples)
        folder = options.out or run_of(options.ckpt) / "curve"
        common = {"batch_size": options.batch_size, "progress": status.update}
        if options.method == "minimum-norm":
            curve = minimum_norm(run.model, samples, FAB(norm=norm, steps=options.steps), grid, **common)
        else:
            curve = fixed_eps(run.model, samples, attack, grid, seed=seed, folder=folder, **common)
        check = recheck(run.model, curve, attack, samples, seed=seed + 1, folder=folder, **common)
    content = {"checkpoint": str(options.ckpt), "seed": seed, **curve.content(), "check": check.content()}
    figure = draw_curve(curve, f"{run_of(options.ckpt).name}, {len(samples)} test images", check, trained)
    files = folder_files(f"curve_{norm}", folder, options.ckpt, content, figure)
    return finish(Report(_lines(curve, check), files, passed=not check.alarms))


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    from lightning_paf.loading import add_run_arguments

    parser = command_parser("curve", __doc__)
    add_run_arguments(parser)
    parser.add_argument("--examples", type=positive, default=200, help="number of test images (default: 200)")
    parser.add_argument("--norm", choices=list(EPS), default="linf", help="norm of eps (default: linf)")
    parser.add_argument(
        "--grid",
        type=_grid,
        help="increasing eps, e.g. 0,2/255,4/255,8/255 (default: from a quarter of the training's eps to twice that)",
    )
    parser.add_argument(
        "--method",
        choices=["fixed-eps", "minimum-norm"],
        default="fixed-eps",
        help="fixed-eps: attack at every eps, resumable; minimum-norm: one search for the smallest perturbation "
        "(default: fixed-eps)",
    )
    parser.add_argument("--steps", type=positive, default=50, help="steps of each attack (default: 50)")
    parser.add_argument("--batch_size", type=positive, default=256, help="samples attacked at once (default: 256)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the attack")
    parser.add_argument("--out", type=Path, help="output folder (default: `curve` in the checkpoint's run)")
    return parser.parse_known_args(argv)


def _grid(text: str) -> "tuple[Radius, ...]":
    """Parse `0,2/255,0.1`; a leading 0 is the clean accuracy, which is always shown."""
    from lightning_paf.analysis.security_curve import check_grid

    try:
        grid = [radius_from_text(part) for part in text.split(",")]
        return check_grid(grid[1:] if grid[0] == 0 else grid)
    except ValueError as error:
        rule = "must be increasing numbers such as 0,2/255,4/255"
        raise argparse.ArgumentTypeError(f"{rule}, got {text!r}") from error


def _attack_at(norm: "Norm", steps: int, classes: int) -> "AttackAt":
    """Build the attack for each eps: APGD-CE, then APGD-DLR on the robust samples."""
    from lightning_paf.attacks import WorstOf
    from lightning_paf.attacks.apgd import APGD

    def attack(eps: "Radius") -> "Attack":
        entropy = APGD(eps, norm=norm, steps=steps)
        return WorstOf([entropy, APGD(eps, norm=norm, search_loss="dlr", steps=steps)]) if classes > 2 else entropy

    return attack


def _lines(curve: "SecurityCurve", check: "Recheck") -> list[str]:
    from lightning_paf.analysis.base import percent, table
    from lightning_paf.attacks import radius_text

    direct = dict(zip(check.eps, check.robust, strict=True))
    rows = [
        (radius_text(eps), str(accuracy), percent(direct[eps] / check.total) if eps in direct else "")
        for eps, accuracy in curve.points
    ]
    lines = table((f"eps ({curve.norm})", "robust accuracy, 95 % interval", "attacked directly"), *rows)
    lines.append(f"Mean robust accuracy over eps from 0 to {radius_text(curve.grid[-1])}: {percent(curve.area)}")
    if check.robust_at_one is not None:
        lines.append(f"Robust at eps 1 (0 expected): {check.robust_at_one} of {check.total} samples.")
    lines.append(f"Robust at some eps, but fooled at a clearly smaller one: {check.reversed} of {check.total} samples.")
    lines += [f"Flag {name}: {text}" for name, text in curve.flags.items()]
    if check.alarms:
        lines += [f"ALARM: {alarm}" for alarm in check.alarms]
        lines.append("The attack is too weak or gradients are masked: the curve may be too high.")
    return lines
