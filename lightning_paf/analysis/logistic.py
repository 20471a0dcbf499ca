"""Logistic regression under attack, with a known optimum (Li et al., 2022)."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_paf.analysis.base import Load, Progress, Report, json_file, percent, table
from lightning_paf.attacks import FGSM, PGD
from lightning_paf.data.sources import read_dataset
from lightning_paf.functional.geometry import Bounds
from lightning_paf.nn.classifier import Classifier
from lightning_paf.specs import DatasetSpec, dataset_spec
from lightning_paf.utils.arguments import number
from lightning_paf.utils.figures import BLUE, VERMILION, WINE, figure_png, open_figure, show_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CHECKPOINTS = 0

PIXELS: Bounds = (0.0, 1.0)


@dataclass(frozen=True)
class LinearRule:
    """Linear classifier of two classes, in double precision.

    The prediction is class 1 where `w . x + b > 0`, else class 0.
    Of all images within eps (linf), `x - s eps sign(w)` has the smallest margin `s (w . x + b)`, where s is 1 for class
    1 and -1 for class 0. This margin is smaller than that of x by `eps |w|_1`.

    Attributes:
        weight: w, (H, W).
        bias: b.
    """

    weight: Tensor
    bias: float

    def margins(self, x: Tensor, y: Tensor) -> Tensor:
        """Margins `s (w . x + b)`, (N,), of images (N, 1, H, W); negative on errors."""
        return _signs(y) * ((x[:, 0] * self.weight).sum((1, 2)) + self.bias)

    def distances(self, x: Tensor, y: Tensor) -> Tensor:
        """Smallest eps that flips each prediction, (N,), without pixel bounds.

        Negative if misclassified.
        """
        return self.margins(x, y) / self.weight.abs().sum()

    def worst(self, x: Tensor, y: Tensor, eps: float, bounds: Bounds = None) -> Tensor:
        """Images (N, 1, H, W) with the smallest margins within eps and the bounds."""
        moved = x - eps * _signs(y)[:, None, None, None] * self.weight.sign()
        return moved if bounds is None else moved.clamp(*bounds)

    def classifier(self) -> Classifier:
        """Classifier with the same decisions.

        Its cross-entropy is the logistic loss `log(1 + exp(-margin))`.
        """
        layer = nn.Linear(self.weight.numel(), 2, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(torch.stack([-self.weight.flatten(), self.weight.flatten()]) / 2)
            layer.bias.copy_(torch.tensor([-self.bias, self.bias], dtype=torch.float64) / 2)
        net = nn.Sequential(nn.Flatten(), layer)
        spec = DatasetSpec("two classes", 2, self.weight.shape[-1], (0.0,), (1.0,))
        return Classifier(net, spec, normalize=False).eval()


def fit_logistic(x: Tensor, y: Tensor, cost: float = 0.5) -> LinearRule:
    """Fit scikit-learn's L1-penalised logistic regression.

    Args:
        x: Images (N, 1, H, W).
        y: Labels (N,), 0 or 1.
        cost: Weight of the logistic loss, summed over all images, relative to the penalty `|w|_1 + |b|`; 0.5 in Li et
            al. (2022).
    """
    from sklearn.linear_model import LogisticRegression

    # scikit-learn 1.8 renamed the option; 1.7 accepts the new name with another meaning.
    renamed = getattr(LogisticRegression(), "penalty", "deprecated") == "deprecated"
    option: dict[str, Any] = {"l1_ratio": 1.0} if renamed else {"penalty": "l1"}
    found = LogisticRegression(C=cost, solver="liblinear", random_state=0, tol=1e-6, **option)
    found.fit(x.flatten(1).double().numpy(), y.numpy())
    return LinearRule(torch.as_tensor(found.coef_).view(x.shape[2:]), float(found.intercept_[0]))


@dataclass(frozen=True)
class LogisticPoint:
    """Robust accuracies at one eps, by formula and by attack.

    Attributes:
        eps: The radius (linf).
        exact: The closed form, `margin > eps |w|_1`.
        pgd: 20 steps of eps / 8 without a random start.
        fgsm: A single step.
        exact_in_range: The closed form for pixels in [0, 1]; at least `exact`.
        pgd_in_range: PGD for pixels in [0, 1].
        difference: Largest pixel difference between the PGD result and `LinearRule.worst`.
    """

    eps: float
    exact: float
    pgd: float
    fgsm: float
    exact_in_range: float
    pgd_in_range: float
    difference: float

    @property
    def agrees(self) -> bool:
        """Whether the attacks reach the optimum."""
        return self.exact == self.pgd == self.fgsm and self.exact_in_range == self.pgd_in_range


def logistic_curve(rule: LinearRule, x: Tensor, y: Tensor, grid: Sequence[float]) -> list[LogisticPoint]:
    """Attack at every eps, and compute the closed form.

    Args:
        rule: The attacked classifier.
        x: Images (N, 1, H, W) in [0, 1], double precision.
        y: Labels (N,), 0 or 1.
        grid: Radii; 0 is the accuracy on clean images.
    """
    model = rule.classifier()

    def accuracy(images: Tensor) -> float:
        return float((rule.margins(images, y) > 0).double().mean())

    def attacked(eps: float) -> LogisticPoint:
        attacks = [PGD(eps, step_size=eps / 8, steps=20, start="none", bounds=bounds) for bounds in (None, PIXELS)]
        pgd = [attack(model, x, y) for attack in attacks]
        worst = [rule.worst(x, y, eps, bounds) for bounds in (None, PIXELS)]
        return LogisticPoint(
            eps,
            exact=float((rule.distances(x, y) > eps).double().mean()),
            pgd=accuracy(pgd[0]),
            fgsm=accuracy(FGSM(eps, bounds=None)(model, x, y)),
            exact_in_range=accuracy(worst[1]),
            pgd_in_range=accuracy(pgd[1]),
            difference=max(float((one - other).abs().max()) for one, other in zip(pgd, worst, strict=True)),
        )

    same = dict.fromkeys(("exact", "pgd", "fgsm", "exact_in_range", "pgd_in_range"), accuracy(x))
    clean = LogisticPoint(0.0, **same, difference=0.0)
    return [attacked(eps) if eps > 0 else clean for eps in grid]


def _signs(y: Tensor) -> Tensor:
    """-1 for class 0 and 1 for class 1."""
    return 2.0 * y.double() - 1


def draw_logistic(rule: LinearRule, curve: Sequence[LogisticPoint], x: Tensor, y: Tensor, headline: str) -> "Figure":
    """Draw the curve, and a digit with the perturbation that flips its prediction.

    Of the correctly classified images (N, 1, H, W) with labels (N,), the one with the median distance is shown.
    """
    with open_figure(11, 4.4, headline) as figure:
        grid = figure.add_gridspec(2, 3, width_ratios=(2.4, 1, 1))
        _draw_curve(figure.add_subplot(grid[:, 0]), curve)
        _draw_digit([figure.add_subplot(grid[row, column]) for row in (0, 1) for column in (1, 2)], rule, x, y)
    return figure


def _draw_curve(axes: "Axes", curve: Sequence[LogisticPoint]) -> None:
    for name, color, line, size, label in (
        ("exact", BLUE, "-", None, "closed form"),
        ("exact_in_range", WINE, "--", None, "closed form, pixels in [0, 1]"),
        ("pgd", VERMILION, "o", 8, "PGD-20"),
        ("fgsm", VERMILION, "x", 5, "FGSM"),
        ("pgd_in_range", WINE, "s", 6, "PGD-20, pixels in [0, 1]"),
    ):
        eps, values = zip(*((point.eps, 100 * getattr(point, name)) for point in curve), strict=True)
        axes.plot(eps, values, line, color=color, fillstyle="none", markersize=size, label=label)
    axes.set(xlabel="eps (linf, pixels in [0, 1])", ylabel="accuracy (%)", ylim=(-2, 102))
    axes.grid()
    axes.legend()


def _draw_digit(panels: Sequence["Axes"], rule: LinearRule, x: Tensor, y: Tensor) -> None:
    distances = rule.distances(x, y)
    correct = (distances > 0).nonzero().squeeze(1)
    chosen = correct[distances[correct].argsort()[len(correct) // 2]].view(1)
    digit, label = x[chosen], y[chosen]
    eps = 1.01 * float(distances[chosen])
    flipped = rule.worst(digit, label, eps)
    largest = float(rule.weight.abs().max())
    for axes, image, title, color, limits in (
        (panels[0], rule.weight, "weights w", "RdBu", (-largest, largest)),
        (panels[1], flipped - digit, f"perturbation, ±{eps:.3f}", "RdBu", (-eps, eps)),
        (panels[2], digit, "digit, classified correctly", "gray", (0, 1)),
        (panels[3], flipped, "digit + perturbation, fooled", "gray", (0, 1)),
    ):
        show_image(axes, image.reshape(rule.weight.shape).numpy(), title, cmap=color, vmin=limits[0], vmax=limits[1])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `analyze logistic`."""
    digit = number(int, least=0, most=9)
    parser.add_argument(
        "--classes",
        type=digit,
        nargs=2,
        default=[0, 1],
        metavar="DIGIT",
        help="two digits to classify (default: 0 1)",
    )
    eps_max = number(float, above=0, most=1)
    parser.add_argument("--eps-max", type=eps_max, default=0.5, help="largest radius, linf (default: 0.5)")
    parser.add_argument("--figure", type=Path, metavar="PNG", help="draw curve, weights and a digit to this file")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write weights and curve to this file")


def analyze(options: argparse.Namespace, load: Load, progress: Progress) -> Report:
    """Fit logistic regression to two digits, and compare attacks with the closed form."""
    first, second = options.classes
    if first == second:
        raise ValueError(f"--classes must be two different digits, got {first} {second}. Pass e.g. --classes 0 1.")
    (x_train, y_train), (x, y) = _digits(first, second)
    rule = fit_logistic(x_train, y_train)
    curve = logistic_curve(rule, x, y, [options.eps_max * n / 20 for n in range(21)])
    columns = ("exact", "pgd", "fgsm", "exact_in_range", "pgd_in_range")
    rows = [(f"{point.eps:.3f}", *(percent(getattr(point, name)) for name in columns)) for point in curve]
    missed = [f"{point.eps:g}" for point in curve if not point.agrees]
    lines = [
        f"L1-penalised logistic regression, digits {first} and {second}",
        f"fitted on {len(y_train)} images, attacked on {len(y)}",
        f"|w|_1 = {float(rule.weight.abs().sum()):.3f}, {int((rule.weight != 0).sum())} of 64 weights are not 0",
        "Accuracy by closed form and attack, without bounds and for pixels in [0, 1]:",
        *table(("eps", "exact", "PGD", "FGSM", "exact, [0, 1]", "PGD, [0, 1]"), *rows),
        f"Largest difference of a pixel from x - s eps sign(w): {max(point.difference for point in curve):.1e}",
        f"FAILED: attack and closed form differ at eps {', '.join(missed)}"
        if missed
        else "Attacks and closed form agree at every eps.",
    ]
    files = {}
    if options.figure is not None:
        headline = f"Logistic regression, digits {first} and {second}: closed form and attacks"
        files[options.figure] = figure_png(draw_logistic(rule, curve, x, y, headline))
    if options.json is not None:
        content = {"classes": options.classes, "weight": rule.weight.tolist(), "bias": rule.bias, "images": len(y)}
        files[options.json] = json_file(content | {"points": [asdict(point) for point in curve]})
    return Report(lines, files, passed=not missed)


def _digits(first: int, second: int) -> list[tuple[Tensor, Tensor]]:
    """Training and test images (N, 1, 8, 8), in double precision, with labels (N,).

    The label is 1 for the second class.
    """
    parts = []
    for part in read_dataset(dataset_spec("digits"), Path(), download=False):
        labels = torch.from_numpy(part.labels)
        chosen = (labels == first) | (labels == second)
        images = torch.from_numpy(part.images).permute(0, 3, 1, 2)[chosen].double() / 255
        parts.append((images, (labels[chosen] == second).long()))
    return parts
