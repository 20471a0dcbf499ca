"""Draw robust accuracy over the size of the perturbation, and check that the attack may be believed."""

import argparse
import json
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_paf.utils.radius import radius_from_text

if TYPE_CHECKING:
    from lightning_paf.analysis.security_curve import AttackAt, RadiusSearch, SecurityCurve
    from lightning_paf.analysis.security_curve_check import Recheck
    from lightning_paf.attacks import Attack
    from lightning_paf.loading import Run
    from lightning_paf.types import Norm, Radius

EPS = {"linf": Fraction(8, 255), "l2": Fraction(128, 255)}
"""What the default grid is made from where the model was not trained in this norm."""

MULTIPLES = [Fraction(n, 4) for n in (1, 2, 3, 4, 5, 6, 8)]


def main(argv: list[str]) -> int:
    """Search, check, and write table, picture and JSON file.

    Args:
        argv: Options, see `--help`.

    Returns:
        Exit status 0, or 1 where the check has raised an alarm.

    Raises:
        ValueError: An option makes no sense, or the run cannot be read.
    """
    options, rest = _parse(argv)
    _check(options)
    from rich.console import Console

    from lightning_paf.analysis.security_curve import security_curve
    from lightning_paf.analysis.security_curve_check import recheck
    from lightning_paf.loading import load_run

    console = Console(stderr=True, highlight=False)
    with console.status("reading the run") as status:
        run = load_run(options.ckpt, options.config, options.device, rest)
        trained = _trained_eps(run, options.norm)
        grid = options.grid or [multiple * (trained or EPS[options.norm]) for multiple in MULTIPLES]
        attack = _attack_at(options.norm, options.steps, run.model.num_classes)
        samples = run.samples(options.examples)
        search = _search(options, attack, grid)
        curve = security_curve(run.model, search, samples, status.update)
        check = recheck(run.model, curve, attack, samples, options.batch_size, options.seed + 1, progress=status.update)
    folder = options.out or options.ckpt.parent.parent / "curve"
    path = _write(folder, curve, check, trained, options)
    _print(curve, check)
    print(f"Picture and numbers: {path}, {path.with_suffix('.json').name}")
    return 1 if check.alarms else 0


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    from lightning_paf.loading import add_run_arguments

    parser = argparse.ArgumentParser("lightning-paf curve", description=__doc__)
    add_run_arguments(parser)
    parser.add_argument("--examples", type=int, default=200, help="how many test images (default: 200)")
    parser.add_argument("--norm", choices=list(EPS), default="linf", help="how eps is measured (default: linf)")
    parser.add_argument(
        "--grid",
        type=_grid,
        help="increasing eps, e.g. 0,2/255,4/255,8/255 (default: from a quarter of the training's eps to twice of it)",
    )
    parser.add_argument(
        "--method",
        choices=["bisection", "minimum-norm"],
        default="bisection",
        help="attack at fixed eps about log2(grid) times, or search the smallest perturbation once",
    )
    parser.add_argument("--steps", type=int, default=50, help="steps of each attack (default: 50)")
    parser.add_argument("--batch_size", type=int, default=256, help="samples attacked at once (default: 256)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder to write to (default: `curve` in the checkpoint's run)")
    return parser.parse_known_args(argv)


def _grid(text: str) -> "list[Radius]":
    """Parse `0,2/255,0.1`; a leading 0 is the clean accuracy, which is always shown."""
    try:
        grid = [radius_from_text(part) for part in text.split(",")]
    except (ValueError, ZeroDivisionError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 0,2/255,4/255") from error
    return [*(grid[1:] if grid[0] == 0 else grid)]


def _check(options: argparse.Namespace) -> None:
    for name in ("examples", "steps", "batch_size"):
        if getattr(options, name) < 1:
            raise ValueError(
                f"{name} must be at least 1, but is {getattr(options, name)}. Pass --{name} N with N >= 1."
            )


def _trained_eps(run: "Run", norm: "Norm") -> "Radius | None":
    """The eps of the training, if it was in this norm."""
    attack = run.module.attack
    return attack.eps if attack.norm == norm else None


def _attack_at(norm: "Norm", steps: int, classes: int) -> "AttackAt":
    """Auto-PGD with the cross-entropy, and on what that leaves standing with the difference-of-logits ratio."""
    from lightning_paf.attacks import WorstOf
    from lightning_paf.attacks.apgd import APGD

    def attack(eps: "Radius") -> "Attack":
        entropy = APGD(eps, norm=norm, steps=steps)
        return WorstOf([entropy, APGD(eps, norm=norm, search_loss="dlr", steps=steps)]) if classes > 2 else entropy

    return attack


def _search(options: argparse.Namespace, attack: "AttackAt", grid: "list[Radius]") -> "RadiusSearch":
    from lightning_paf.analysis.security_curve import Bisection, MinimumNorm
    from lightning_paf.attacks.fab import FAB

    if options.method == "minimum-norm":
        return MinimumNorm(FAB(norm=options.norm, steps=options.steps), grid, options.batch_size)
    return Bisection(attack, grid, options.norm, options.batch_size, options.seed)


def _write(
    folder: Path,
    curve: "SecurityCurve",
    check: "Recheck",
    trained: "Radius | None",
    options: argparse.Namespace,
) -> Path:
    from lightning_paf.analysis.security_curve_figure import draw_curve
    from lightning_paf.utils.figures import save_figure
    from lightning_paf.utils.files import explained, write_whole

    path: Path = folder / f"curve_{curve.norm}.png"
    with explained(folder, "the folder of --out"):
        folder.mkdir(parents=True, exist_ok=True)
        content = {"checkpoint": str(options.ckpt), "seed": options.seed, **curve.content(), "check": check.content()}
        write_whole(path.with_suffix(".json"), (json.dumps(content) + "\n").encode())
        headline = f"{options.ckpt.parent.parent.name}, {len(curve.ids)} test images"
        save_figure(draw_curve(curve, headline, check, trained), path)
    return path


def _print(curve: "SecurityCurve", check: "Recheck") -> None:
    from rich.console import Console
    from rich.table import Table

    from lightning_paf.attacks import radius_text

    direct = dict(zip(check.eps, check.robust, strict=True))
    table = Table("eps", "robust accuracy, 95 % interval", "attacked directly", title=f"{curve.norm}")
    for eps, accuracy in curve.points:
        again = f"{100 * direct[eps] / check.total:.1f} %" if eps in direct else ""
        table.add_row(radius_text(eps), str(accuracy), again)
    Console(highlight=False).print(table)
    print(f"Mean robust accuracy over eps from 0 to {radius_text(curve.grid[-1])}: {100 * curve.area:.1f} %")
    if check.robust_at_one is not None:
        print(f"Withstand eps 1 (0 expected): {check.robust_at_one} of {check.total} samples.")
    print(f"Withstand an eps though clearly less fools the model: {check.reversed} of {check.total} samples.")
    for alarm in check.alarms:
        print(f"ALARM: {alarm}")
    if check.alarms:
        print("The attack misses what exists: gradients may be masked, and the curve may be too high.")
