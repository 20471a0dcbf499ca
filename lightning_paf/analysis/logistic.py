"""Logistic regression under attack, where the best attack is known in closed form (Li et al., 2022)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_paf.attacks import FGSM, PGD
from lightning_paf.functional.geometry import Bounds
from lightning_paf.functional.predictions import misclassified
from lightning_paf.nn.classifier import Classifier
from lightning_paf.specs import DatasetSpec

PIXELS: Bounds = (0.0, 1.0)


@dataclass(frozen=True)
class LinearRule:
    """Says class 1 where `w . x + b > 0`, else class 0; everything in double precision.

    Of all images within eps (linf), `x - s eps sign(w)` has the smallest margin `s (w . x + b)`, where s is 1 for class
    1 and -1 for class 0. It is smaller than that of x by `eps |w|_1`.

    Attributes:
        weight: w, (H, W).
        bias: b.
    """

    weight: Tensor
    bias: float

    def margins(self, x: Tensor, y: Tensor) -> Tensor:
        """How far images (N, 1, H, W) with labels (N,), 0 or 1, are on the right side: `s (w . x + b)`, (N,)."""
        return _signs(y) * ((x[:, 0] * self.weight).sum((1, 2)) + self.bias)

    def distances(self, x: Tensor, y: Tensor) -> Tensor:
        """The smallest eps that turns each image, (N,), where pixels have no bounds; negative for a mistake."""
        return self.margins(x, y) / self.weight.abs().sum()

    def worst(self, x: Tensor, y: Tensor, eps: float, bounds: Bounds = None) -> Tensor:
        """The images (N, 1, H, W) within eps and the bounds that have the smallest margins."""
        moved = x - eps * _signs(y)[:, None, None, None] * self.weight.sign()
        return moved if bounds is None else moved.clamp(*bounds)

    def classifier(self) -> Classifier:
        """The same rule as a classifier, whose cross-entropy is the logistic loss `log(1 + exp(-margin))`."""
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
        cost: Of the logistic loss, summed over all images, against `|w|_1 + |b|`; 0.5 as Li et al. (2022).
    """
    from sklearn.linear_model import LogisticRegression

    # Version 1.8 renamed the option, and 1.7 would take the new name for another one without an error.
    renamed = getattr(LogisticRegression(), "penalty", "deprecated") == "deprecated"
    option: dict[str, Any] = {"l1_ratio": 1.0} if renamed else {"penalty": "l1"}
    found = LogisticRegression(C=cost, solver="liblinear", random_state=0, tol=1e-6, **option)
    found.fit(x.flatten(1).double().numpy(), y.numpy())
    return LinearRule(torch.as_tensor(found.coef_).view(x.shape[2:]), float(found.intercept_[0]))


@dataclass(frozen=True)
class LogisticPoint:
    """Shares of images that withstand an eps, by formula and by attack.

    Attributes:
        eps: The radius (linf).
        exact: By the closed form, `margin > eps |w|_1`.
        pgd: By 20 steps of eps / 8 without a random start.
        fgsm: By a single step.
        exact_in_range: By the closed form where pixels stay in [0, 1]; at least `exact`.
        pgd_in_range: By PGD there.
        difference: Largest difference of a pixel between what PGD found and `LinearRule.worst`, with bounds or without.
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
        """Whether the attacks are as good as can be."""
        return self.exact == self.pgd == self.fgsm and self.exact_in_range == self.pgd_in_range


def logistic_curve(rule: LinearRule, x: Tensor, y: Tensor, grid: Sequence[float]) -> list[LogisticPoint]:
    """Attack at every eps, and work out beside it what an attack can reach.

    Args:
        rule: What is attacked.
        x: Images (N, 1, H, W) in [0, 1], double precision.
        y: Labels (N,), 0 or 1.
        grid: Radii; 0 is the accuracy on clean images.
    """
    return [_clean(rule, x, y) if eps == 0 else _attacked(rule, x, y, eps) for eps in grid]


def _clean(rule: LinearRule, x: Tensor, y: Tensor) -> LogisticPoint:
    right = _share(rule.margins(x, y) > 0)
    return LogisticPoint(0.0, right, right, right, right, right, 0.0)


def _attacked(rule: LinearRule, x: Tensor, y: Tensor, eps: float) -> LogisticPoint:
    model = rule.classifier()
    found = {
        bounds: PGD(eps, step_size=eps / 8, steps=20, start="none", bounds=bounds)(model, x, y)
        for bounds in (None, PIXELS)
    }
    worst = {bounds: rule.worst(x, y, eps, bounds) for bounds in found}
    return LogisticPoint(
        eps,
        exact=_share(rule.margins(x, y) > eps * rule.weight.abs().sum()),
        pgd=_right(model, found[None], y),
        fgsm=_right(model, FGSM(eps, bounds=None)(model, x, y), y),
        exact_in_range=_share(rule.margins(worst[PIXELS], y) > 0),
        pgd_in_range=_right(model, found[PIXELS], y),
        difference=max(float((found[bounds] - worst[bounds]).abs().max()) for bounds in found),
    )


@torch.no_grad()
def _right(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return _share(~misclassified(model(x), y))


def _share(flags: Tensor) -> float:
    return float(flags.double().mean())


def _signs(y: Tensor) -> Tensor:
    """-1 for class 0 and 1 for class 1."""
    return 2.0 * y.double() - 1
