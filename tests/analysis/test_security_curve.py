"""The curve of a linear model is known in closed form; a model that hides its gradients must raise an alarm."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from lightning_paf.analysis.security_curve import SecurityCurve, bisection, minimum_norm
from lightning_paf.analysis.security_curve_check import Recheck, draw_curve, recheck
from lightning_paf.attacks import PGD, Attack, WorstOf
from lightning_paf.attacks.fab import FAB
from lightning_paf.evaluation import Samples
from lightning_paf.functional.losses import margin

DUAL = {"linf": 1, "l2": 2}
GRID = {"linf": [Fraction(n, 100) for n in (1, 2, 3, 4, 6, 8, 12)], "l2": [0.05, 0.1, 0.15, 0.2, 0.3, 0.4]}


def linear(seed: int = 0) -> nn.Sequential:
    """Two classes, with a boundary through the grey image."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    model[1].bias.data = -model(torch.full((1, 1, 4, 4), 0.5)).detach()[0]
    return model


def planted(norm: str, n: int = 40):
    """A linear model, samples of which some are clean errors, and their exact radii (0 for those)."""
    model = linear()
    x = 0.5 + 0.3 * (torch.rand(n, 1, 4, 4) - 0.5)
    z = model(x).detach()
    y = z.argmax(1)
    y[::8] = 1 - y[::8]
    normal = (model[1].weight[1] - model[1].weight[0]).detach()
    radius = -margin(z, y) / normal.norm(p=DUAL[norm])
    grid = torch.tensor([float(eps) for eps in GRID[norm]])
    clear = ((radius[:, None] - grid).abs() > 0.02 * grid).all(1)  # else rounding decides
    return model, Samples.of(x[clear], y[clear]), radius[clear].clamp_min(0).double().numpy()


def pgd(norm: str):
    return lambda eps: PGD(eps, norm=norm, step_size=float(eps) / 4, steps=20, loss=margin)


class Exact:
    """The minimum-norm attack that solves a linear model."""

    def __init__(self, model, norm):
        self.norm = norm
        self.normal = (model[1].weight[1] - model[1].weight[0]).detach().view(1, 1, 4, 4)

    def minimum(self, forward, x, y):
        assert torch.is_grad_enabled()
        assert not any(parameter.requires_grad for parameter in forward.parameters())
        step = self.normal.sign() if self.norm == "linf" else self.normal / self.normal.norm()
        needed = -margin(forward(x), y) / self.normal.norm(p=DUAL[self.norm])
        side = torch.where(y == 0, 1.0, -1.0)
        x_adv = x + 1.001 * (needed * side).view(-1, 1, 1, 1) * step
        return x_adv, needed

    def describe(self):
        return {"attack": "Exact", "eps": "8/255", "norm": self.norm}


class Idle(Attack):
    def perturb(self, forward, x, y, loss):
        return x


both_norms = pytest.mark.parametrize("norm", ["linf", "l2"])


@both_norms
def test_bisection_brackets_the_radius_and_the_check_agrees(norm):
    model, samples, radius = planted(norm)
    curve = bisection(model, samples, pgd(norm), GRID[norm], batch_size=7)
    grid = np.array([0.0, *map(float, GRID[norm]), math.inf])
    above = np.searchsorted(grid, radius)
    robust = radius > 0
    assert 0 < robust.sum() < len(radius)
    assert curve.norm == norm
    np.testing.assert_array_equal(curve.fooled, np.where(robust, grid[above], 0))
    np.testing.assert_array_equal(curve.survived, np.where(robust, grid[above - 1], 0))
    assert [a.correct for _, a in curve.points] == [np.count_nonzero(radius > float(e)) for e in (0, *GRID[norm])]
    check = recheck(model, curve, pgd(norm), samples)
    assert check.eps == (GRID[norm][0], GRID[norm][len(GRID[norm]) // 2], GRID[norm][-1])
    assert check.robust == tuple(np.count_nonzero(radius > float(eps)) for eps in check.eps)
    assert check.robust_at_one == (0 if norm == "linf" else None)
    assert (check.reversed, check.alarms) == (0, [])


@both_norms
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "fab"])
def test_minimum_norm_finds_the_radius_and_the_check_agrees(norm, exact):
    model, samples, radius = planted(norm)
    attack = Exact(model, norm) if exact else FAB(norm=norm, steps=20)
    curve = minimum_norm(model, samples, attack, GRID[norm], batch_size=7)
    np.testing.assert_allclose(curve.fooled, radius, rtol=2e-3 if exact else 0.02, atol=1e-6)
    assert curve.search["method"] == "minimum-norm"
    assert "eps" not in curve.search
    check = recheck(model, curve, pgd(norm), samples)
    assert (check.reversed, check.alarms) == (0, [])


def test_the_search_is_described_without_any_eps_of_the_grid():
    model, samples, _ = planted("linf", n=8)
    described = bisection(model, samples, lambda e: WorstOf([PGD(e), PGD(e, steps=20)]), [0.01, 0.02]).search
    assert described["method"] == "bisection"
    assert [attack["steps"] for attack in described["attacks"]] == [10, 20]
    assert "eps" not in str(described).replace("steps", "").replace("step_size", "")


def test_a_minimum_that_does_not_fool_the_model_does_not_count():
    model, samples, radius = planted("linf")

    class Short(Exact):
        def minimum(self, forward, x, y):
            x_adv, needed = super().minimum(forward, x, y)
            return x + 0.5 * (x_adv - x), needed

    curve = minimum_norm(model, samples, Short(model, "linf"), GRID["linf"])
    assert np.isinf(curve.fooled[radius > 0]).all()


def test_each_round_attacks_only_what_is_unsure():
    model, samples, radius = planted("linf")
    seen = []

    class Counting(PGD):
        def perturb(self, forward, x, y, loss):
            seen.append((float(self.eps), len(x)))
            return super().perturb(forward, x, y, loss)

    bisection(model, samples, lambda e: Counting(e, step_size=e / 4, steps=20, loss=margin), GRID["linf"])
    correct = np.count_nonzero(radius > 0)
    assert seen[0] == (0.04, correct)  # the middle of seven
    assert sum(n for _, n in seen) == 3 * correct  # log2(8): 7 eps make 8 answers


def handmade(fooled, grid=(1.0, 2.0), norm="l2") -> SecurityCurve:
    fooled = np.array(fooled, float)
    return SecurityCurve(norm, {"method": "none"}, grid, np.arange(len(fooled)), np.zeros_like(fooled), fooled)


THREE = handmade([0, 0.02, math.inf], grid=(Fraction(2, 255), Fraction(8, 255)), norm="linf")


@pytest.mark.parametrize(
    ("fooled", "grid", "area"),
    [
        ([math.inf] * 4, (1.0, 2.0), 1),
        ([0] * 4, (1.0, 2.0), 0),
        ([0, 1, 2, math.inf], (1.0, 2.0), 0.5),  # accuracies 3/4, 2/4, 1/4 at 0, 1, 2: (5/8 + 3/8) / 2
        ([0.5, 2], (1.0, 4.0), 0.375),  # accuracies 1, 1/2, 0 at 0, 1, 4: (3/4 + 3 * 1/4) / 4
    ],
)
def test_area_is_the_mean_over_all_eps(fooled, grid, area):
    assert handmade(fooled, grid).area == pytest.approx(area)


def test_content_is_json_and_keeps_fractions():
    content = json.loads(json.dumps(THREE.content(), allow_nan=False))
    assert [point["eps"] for point in content["points"]] == ["0", "2/255", "8/255"]
    assert [point["robust"] for point in content["points"]] == [2, 2, 1]
    assert content["broken"] == [0, 0.02, None]
    assert content["survived"] == [0, 0, 0]
    assert content["points"][0]["low"] < content["points"][0]["accuracy"] == 2 / 3 < content["points"][0]["high"]


@pytest.mark.parametrize("grid", [[], [0.0, 0.1], [0.1, 0.1], [0.2, 0.1], [-0.1, 0.1], [float("nan")]])
def test_no_samples_and_grids_that_do_not_increase_are_refused(grid):
    model, samples, _ = planted("linf", n=8)
    none = Samples.of(torch.zeros(0, 1, 4, 4), torch.zeros(0, dtype=torch.long))
    for search, attack in ((bisection, pgd("linf")), (minimum_norm, Exact(model, "linf"))):
        with pytest.raises(ValueError, match="must increase from above 0"):
            search(model, samples, attack, grid)
        with pytest.raises(ValueError, match="needs at least one sample"):
            search(model, none, attack, [0.1])


class Lambda(nn.Module):
    """Quantised or saturated logits: the gradient of their cross-entropy is zero."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


@pytest.mark.parametrize("mask", [lambda logits: (logits * 100).round() / 100, lambda logits: logits * 1e5])
@pytest.mark.parametrize("start", ["none", "uniform"])
def test_masked_gradients_raise_an_alarm(mask, start):
    model = linear()
    x = 0.5 + 0.3 * (torch.rand(60, 1, 4, 4) - 0.5)
    masked = nn.Sequential(model, Lambda(mask))
    with torch.no_grad():
        samples = Samples.of(x, masked(x).argmax(1))

    def alarms(evaluated):  # cross-entropy, whose gradient vanishes on both
        attack = lambda eps: PGD(eps, step_size=float(eps) / 4, steps=10, start=start)  # noqa: E731
        return recheck(evaluated, bisection(evaluated, samples, attack, GRID["linf"]), attack, samples).alarms

    assert any("withstand eps 1" in alarm for alarm in alarms(masked))
    assert alarms(model) == []


def test_an_attack_that_fails_at_large_eps_raises_every_alarm():
    model, samples, radius = planted("linf")
    attack = lambda eps: Idle(eps) if eps > 0.07 else pgd("linf")(eps)  # noqa: E731
    check = recheck(model, bisection(model, samples, attack, GRID["linf"]), attack, samples)
    total, correct = len(samples), np.count_nonzero(radius > 0)
    assert check.robust == (np.count_nonzero(radius > 0.01), np.count_nonzero(radius > 0.04), correct)
    assert check.reversed == np.count_nonzero((radius > 0) & (radius < 0.04)) > 0
    rises, reversal, at_one = check.alarms
    assert f"{check.robust[1]} of {total} samples withstand 1/25, but {correct} withstand 3/25" in rises
    assert f"{check.reversed} of {total}" in reversal
    assert f"{correct} of {total} samples withstand eps 1" in at_one


def test_a_curve_that_missed_what_the_check_finds_is_reversed():
    model, samples, radius = planted("linf")
    check = recheck(model, bisection(model, samples, Idle, GRID["linf"]), pgd("linf"), samples)
    # Where both attacked at the same eps and disagree, only their random starts may differ: 0.12 does not count.
    assert check.reversed == np.count_nonzero((radius > 0) & (radius < 0.04)) > 0


@pytest.mark.parametrize(("factor", "reversed_"), [(0.5, False), (1.02, False), (1.5, True)])
def test_a_minimum_is_reversed_where_the_check_finds_clearly_less(factor, reversed_):
    model, samples, radius = planted("linf")
    claimed = factor * 0.04 * (radius > 0)
    curve = SecurityCurve("linf", {}, (0.04,), samples.ids, claimed, np.where(radius > 0.04, math.inf, claimed))
    check = recheck(model, curve, pgd("linf"), samples)
    assert check.robust == (np.count_nonzero(radius > 0.04),), "a grid of one is checked once"
    assert check.reversed == (np.count_nonzero((radius > 0) & (radius < 0.04)) if reversed_ else 0)


def test_a_few_reversals_are_put_down_to_chance():
    assert Recheck((0.1,), (5,), 100, 2, 2, 0.02).alarms == []
    assert len(Recheck((0.1,), (5,), 100, 3, 3, 0.02).alarms) == 2


def test_the_figure_shows_curve_check_training_and_alarm():
    check = Recheck((Fraction(2, 255),), (2,), 3, 2, 3, 0.02)
    (axes,) = draw_curve(THREE, "three images", check, Fraction(8, 255)).axes
    labels = axes.get_legend_handles_labels()[1]
    assert any("training, 8/255" in label for label in labels)
    assert "clean accuracy, 66.7 %" in labels
    assert any("check" in label for label in labels)
    line = next(line for line in axes.lines if line.get_label() == "robust accuracy")
    assert list(line.get_xdata()) == pytest.approx([0, 2, 8])
    assert list(line.get_ydata()) == pytest.approx([200 / 3, 200 / 3, 100 / 3])
    assert "1/255" in axes.get_xlabel()
    assert "ALARM" in axes.get_title()
    (axes,) = draw_curve(handmade([0.5, 3]), "two images").axes
    assert (axes.get_xlabel(), axes.get_title()) == ("eps (l2)", "")
