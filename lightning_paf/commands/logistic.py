"""Attack logistic regression on two digits, where the best attack is known, and show that PGD finds it."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_paf.analysis.logistic import LogisticPoint

POINTS = 20
"""Radii that are attacked."""


def main(argv: list[str]) -> int:
    """Fit, attack, print the table, and write picture and JSON file.

    Args:
        argv: Options, see `--help`.

    Returns:
        0, or 1 where an attack leaves more than the closed form.

    Raises:
        ValueError: An option makes no sense.
    """
    options = _parse(argv)
    _check(options)
    from lightning_paf.analysis.logistic import fit_logistic, logistic_curve
    from lightning_paf.utils.files import explained, write_whole

    (x_train, y_train), (x, y) = _digits(options.classes)
    rule = fit_logistic(x_train, y_train)
    curve = logistic_curve(rule, x, y, [options.eps_max * n / POINTS for n in range(POINTS + 1)])
    first, second = options.classes
    print(f"L1-penalised logistic regression, digits {first} and {second}: {len(y_train)} to fit, {len(y)} to attack")
    print(f"|w|_1 = {float(rule.weight.abs().sum()):.3f}, {int((rule.weight != 0).sum())} of 64 weights are not 0")
    _print(curve)
    for path, option in ((options.figure, "--figure"), (options.json, "--json")):
        if path is not None:
            with explained(path, f"the file of {option}"):
                path.parent.mkdir(parents=True, exist_ok=True)
    if options.figure is not None:
        from lightning_paf.analysis.logistic_figure import draw_logistic
        from lightning_paf.utils.figures import save_figure

        headline = f"Logistic regression, digits {first} and {second}: what an attack can do, and what PGD does"
        with explained(options.figure, "the file of --figure"):
            save_figure(draw_logistic(rule, curve, x, y, headline), options.figure)
    if options.json is not None:
        content = {
            "classes": options.classes,
            "weight": rule.weight.tolist(),
            "bias": rule.bias,
            "images": len(y),
            "points": [asdict(point) for point in curve],
        }
        with explained(options.json, "the file of --json"):
            write_whole(options.json, (json.dumps(content) + "\n").encode())
    return 0 if all(point.agrees for point in curve) else 1


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("lightning-paf logistic", description=__doc__)
    parser.add_argument(
        "--classes", type=int, nargs=2, default=[0, 1], metavar="DIGIT", help="two of 0 to 9 (default: 0 1)"
    )
    parser.add_argument("--eps-max", type=float, default=0.5, help="largest radius, linf (default: 0.5)")
    parser.add_argument("--figure", type=Path, metavar="PNG", help="draw curve, weights and a digit to this file")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write weights and curve to this file")
    return parser.parse_args(argv)


def _check(options: argparse.Namespace) -> None:
    first, second = options.classes
    if first == second or not {first, second} <= set(range(10)):
        raise ValueError(
            f"Logistic regression tells two digits of 0 to 9 apart, but --classes is {first} {second}. "
            "Pass two different ones, e.g. --classes 0 1."
        )
    if not 0 < options.eps_max <= 1:
        raise ValueError(
            f"--eps-max is in (0, 1], as pixels are in [0, 1], but is {options.eps_max}. Pass --eps-max 0.5."
        )


def _digits(classes: list[int]) -> "list[tuple[Tensor, Tensor]]":
    """Images (N, 1, 8, 8) in double precision and labels (N,), 1 for the second class; to fit, and to attack."""
    import torch

    from lightning_paf.data.sources import read_dataset
    from lightning_paf.specs import dataset_spec

    parts = []
    for part in read_dataset(dataset_spec("digits"), Path(), download=False):
        labels = torch.from_numpy(part.labels)
        of_them = (labels == classes[0]) | (labels == classes[1])
        images = torch.from_numpy(part.images).permute(0, 3, 1, 2)[of_them].double() / 255
        parts.append((images, (labels[of_them] == classes[1]).long()))
    return parts


def _print(curve: "list[LogisticPoint]") -> None:
    print(f"{'':6} {'pixels without bounds':>26} {'pixels in [0, 1]':>18}")
    print(f"{'eps':>6} {'exact':>8} {'PGD':>8} {'FGSM':>8} {'exact':>9} {'PGD':>8}")
    for point in curve:
        free = f"{100 * point.exact:7.1f}% {100 * point.pgd:7.1f}% {100 * point.fgsm:7.1f}%"
        print(f"{point.eps:6.3f} {free} {100 * point.exact_in_range:8.1f}% {100 * point.pgd_in_range:7.1f}%")
    print(f"Largest difference of a pixel from x - s eps sign(w): {max(point.difference for point in curve):.1e}")
    missed = [f"{point.eps:g}" for point in curve if not point.agrees]
    print(f"ALARM: attack and closed form differ at eps {', '.join(missed)}" if missed else "They agree at every eps.")
