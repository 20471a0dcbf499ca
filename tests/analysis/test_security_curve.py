"""The curve of a linear model is known in closed form; a model that hides its gradients must raise an alarm."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from lightning_paf.analysis.security_curve import Bisection, MinimumNorm, Radii, SecurityCurve, security_curve
from lightning_paf.analysis.security_curve_check import Recheck, recheck
from lightning_paf.analysis.security_curve_figure import draw_curve
from lightning_paf.attacks import PGD, Attack, WorstOf
from lightning_paf.attacks.fab import FAB
from lightning_paf.evaluation.samples import Samples
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
    """A linear model, images with labels of which some are clean errors, and their exact radii (0 for those)."""
    model = linear()
    x = 0.5 + 0.3 * (torch.rand(n, 1, 4, 4) - 0.5)
    z = model(x).detach()
    y = z.argmax(1)
    y[::8] = 1 - y[::8]
    normal = (model[1].weight[1] - model[1].weight[0]).detach()
    radius = -margin(z, y) / normal.norm(p=DUAL[norm])
    grid = torch.tensor([float(eps) for eps in GRID[norm]])
    clear = ((radius[:, None] - grid).abs() > 0.02 * grid).all(1)  # else rounding decides
    return model, x[clear], y[clear], radius[clear].clamp_min(0).double().numpy()


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


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_bisection_brackets_the_radius_of_a_linear_model(norm):
    model, x, y, radius = planted(norm)
    curve = security_curve(model, Bisection(pgd(norm), GRID[norm], norm, batch_size=7), Samples.of(x, y))
    grid = np.array([0.0, *map(float, GRID[norm]), math.inf])
    above = np.searchsorted(grid, radius)
    robust = radius > 0
    assert 0 < robust.sum() < len(radius)
    np.testing.assert_array_equal(curve.radii.broken, np.where(robust, grid[above], 0))
    np.testing.assert_array_equal(curve.radii.survived, np.where(robust, grid[above - 1], 0))
    for eps, accuracy in curve.points:
        assert accuracy.correct == np.count_nonzero(radius > float(eps))
    assert curve.points[0][1].correct == robust.sum()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_minimum_norm_finds_the_radius_of_a_linear_model(norm):
    model, x, y, radius = planted(norm)
    search = MinimumNorm(Exact(model, norm), GRID[norm], batch_size=7)
    curve = security_curve(model, search, Samples.of(x, y))
    np.testing.assert_allclose(curve.radii.broken, 1.001 * radius, rtol=1e-3, atol=1e-6)
    assert [a.correct for _, a in curve.points] == [np.count_nonzero(radius > float(e)) for e in (0, *GRID[norm])]
    assert curve.search == {"method": "minimum-norm", "attack": "Exact"}


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fab_finds_the_radius_of_a_linear_model_and_passes_the_check(norm):
    model, x, y, radius = planted(norm)
    samples = Samples.of(x, y)
    curve = security_curve(model, MinimumNorm(FAB(norm=norm, steps=20), GRID[norm]), samples)
    np.testing.assert_allclose(curve.radii.broken, radius, rtol=0.02, atol=1e-6)
    check = recheck(model, curve, pgd(norm), samples)
    assert check.reversed == 0
    assert check.alarms == []


def test_the_search_describes_itself_without_any_eps_of_the_grid():
    described = Bisection(lambda eps: WorstOf([PGD(eps), PGD(eps, steps=20)]), [0.01, 0.02]).describe()
    assert described["method"] == "bisection"
    assert [attack["steps"] for attack in described["attacks"]] == [10, 20]
    assert "eps" not in str(described).replace("steps", "").replace("step_size", "")


def test_a_minimum_that_does_not_fool_the_model_does_not_count():
    model, x, y, radius = planted("linf")
    exact = Exact(model, "linf")

    class Short(Exact):
        def minimum(self, forward, x, y):
            x_adv, needed = exact.minimum(forward, x, y)
            return x + 0.5 * (x_adv - x), needed

    curve = security_curve(model, MinimumNorm(Short(model, "linf"), GRID["linf"]), Samples.of(x, y))
    assert np.isinf(curve.radii.broken[radius > 0]).all()


def test_each_round_attacks_only_what_is_unsure():
    model, x, y, radius = planted("linf")
    seen = []

    class Counting(PGD):
        def perturb(self, forward, x, y, loss):
            seen.append((float(self.eps), len(x)))
            return super().perturb(forward, x, y, loss)

    def attack(eps):
        return Counting(eps, step_size=eps / 4, steps=20, loss=margin)

    security_curve(model, Bisection(attack, GRID["linf"]), Samples.of(x, y))
    correct = np.count_nonzero(radius > 0)
    assert seen[0] == (0.04, correct)  # the middle of seven
    assert sum(n for _, n in seen) == 3 * correct  # log2(8): 7 eps make 8 answers


def test_the_search_leaves_model_and_random_numbers_as_they_were():
    model, x, y, _ = planted("linf")
    model.train()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    samples = Samples.of(x, y)
    first = security_curve(model, Bisection(pgd("linf"), GRID["linf"]), samples)
    assert torch.rand(1) == expected
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    again = security_curve(model, Bisection(pgd("linf"), GRID["linf"]), samples)
    np.testing.assert_array_equal(first.radii.broken, again.radii.broken)


def handmade(broken, survived=None, grid=(1.0, 2.0), norm="l2") -> SecurityCurve:
    broken = np.array(broken, float)
    survived = np.zeros_like(broken) if survived is None else np.array(survived, float)
    return SecurityCurve(norm, {"method": "none"}, grid, np.arange(len(broken)), Radii(survived, broken))


def test_area_is_the_mean_over_all_eps():
    assert handmade([math.inf] * 4).area == 1
    assert handmade([0] * 4).area == 0
    # accuracies 3/4, 2/4, 1/4 at 0, 1, 2: (5/8 + 3/8) / 2
    assert handmade([0, 1, 2, math.inf]).area == pytest.approx(0.5)
    # accuracies 1, 1/2, 0 at 0, 1, 4: (3/4 + 3 * 1/4) / 4
    assert handmade([0.5, 2], grid=(1.0, 4.0)).area == pytest.approx(0.375)


def test_content_is_json_and_keeps_fractions():
    curve = handmade([0, 0.02, math.inf], grid=(Fraction(2, 255), Fraction(8, 255)), norm="linf")
    content = json.loads(json.dumps(curve.content(), allow_nan=False))
    assert [point["eps"] for point in content["points"]] == ["0", "2/255", "8/255"]
    assert [point["robust"] for point in content["points"]] == [2, 2, 1]
    assert content["broken"] == [0, 0.02, None]
    assert content["points"][0]["low"] < content["points"][0]["accuracy"] == 2 / 3 < content["points"][0]["high"]


@pytest.mark.parametrize("grid", [[], [0.0, 0.1], [0.1, 0.1], [0.2, 0.1], [-0.1, 0.1], [float("nan")]])
def test_grids_that_do_not_increase_are_refused(grid):
    with pytest.raises(ValueError, match="must increase from above 0"):
        Bisection(pgd("linf"), grid)


def test_no_samples_are_refused():
    samples = Samples.of(torch.zeros(0, 1, 4, 4), torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match="needs samples"):
        security_curve(linear(), Bisection(pgd("linf"), [0.1]), samples)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_healthy_model_raises_no_alarm(norm):
    model, x, y, radius = planted(norm)
    samples = Samples.of(x, y)
    curve = security_curve(model, Bisection(pgd(norm), GRID[norm], norm), samples)
    check = recheck(model, curve, pgd(norm), samples)
    assert check.eps == (GRID[norm][0], GRID[norm][len(GRID[norm]) // 2], GRID[norm][-1])
    assert check.robust == tuple(np.count_nonzero(radius > float(eps)) for eps in check.eps)
    assert check.reversed == 0
    assert check.robust_at_one == (0 if norm == "linf" else None)
    assert check.alarms == []


class Quantised(nn.Module):
    """Logits in steps, as an activation quantiser makes them: their gradient is zero."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return (self.model(x) * 100).round() / 100


class Saturated(Quantised):
    def forward(self, x):
        return self.model(x) * 1e5


@pytest.mark.parametrize("fake", [Quantised, Saturated])
@pytest.mark.parametrize("start", ["none", "uniform"])
def test_masked_gradients_raise_an_alarm(fake, start):
    model = linear()
    x = 0.5 + 0.3 * (torch.rand(60, 1, 4, 4) - 0.5)
    masked = fake(model)
    with torch.no_grad():
        samples = Samples.of(x, masked(x).argmax(1))

    def attack(eps):  # cross-entropy, whose gradient vanishes on both
        return PGD(eps, step_size=float(eps) / 4, steps=10, start=start)

    def alarms(judged):
        curve = security_curve(judged, Bisection(attack, GRID["linf"]), samples)
        return recheck(judged, curve, attack, samples).alarms

    assert any("withstand eps 1" in alarm for alarm in alarms(masked))
    assert alarms(model) == []


class Timid(PGD):
    """Does nothing at large eps."""

    def perturb(self, forward, x, y, loss):
        return x if float(self.eps) > 0.07 else super().perturb(forward, x, y, loss)


def test_an_attack_that_fails_at_large_eps_raises_every_alarm():
    model, x, y, radius = planted("linf")
    samples = Samples.of(x, y)

    def attack(eps):
        return Timid(eps, step_size=float(eps) / 4, steps=20, loss=margin)

    curve = security_curve(model, Bisection(attack, GRID["linf"]), samples)
    check = recheck(model, curve, attack, samples)
    correct = np.count_nonzero(radius > 0)
    assert check.robust == (np.count_nonzero(radius > 0.01), np.count_nonzero(radius > 0.04), correct)
    assert check.reversed == np.count_nonzero((radius > 0) & (radius < 0.04)) > 0
    rises, reversal, at_one = check.alarms
    assert f"{check.robust[1]} of {len(y)} samples withstand 1/25, but {correct} withstand 3/25" in rises
    assert f"{check.reversed} of {len(y)}" in reversal
    assert f"{correct} of {len(y)} samples withstand eps 1" in at_one


def test_a_curve_that_missed_what_the_check_finds_is_reversed():
    model, x, y, radius = planted("linf")
    samples = Samples.of(x, y)
    curve = security_curve(model, Bisection(Idle, GRID["linf"]), samples)
    check = recheck(model, curve, pgd("linf"), samples)
    # Where both attacked at the same eps and disagree, only their random starts may differ: 0.12 does not count.
    assert check.reversed == np.count_nonzero((radius > 0) & (radius < 0.04)) > 0


class Idle(Attack):
    def perturb(self, forward, x, y, loss):
        return x


@pytest.mark.parametrize(("factor", "reversed_"), [(0.5, False), (1.02, False), (1.5, True)])
def test_a_minimum_is_reversed_where_the_check_finds_clearly_less(factor, reversed_):
    model, x, y, radius = planted("linf")
    samples = Samples.of(x, y)
    claimed = factor * 0.04 * (radius > 0)
    curve = SecurityCurve("linf", {}, (0.04,), samples.ids, Radii(claimed, np.where(radius > 0.04, math.inf, claimed)))
    expected = np.count_nonzero((radius > 0) & (radius < 0.04)) if reversed_ else 0
    assert recheck(model, curve, pgd("linf"), samples).reversed == expected


def test_a_few_reversals_are_put_down_to_chance():
    assert Recheck((0.1,), (5,), 100, 2, 2, 0.02).alarms == []
    assert len(Recheck((0.1,), (5,), 100, 3, 3, 0.02).alarms) == 2


def test_a_grid_of_one_is_checked_once():
    model, x, y, radius = planted("linf")
    samples = Samples.of(x, y)
    curve = security_curve(model, Bisection(pgd("linf"), [0.04]), samples)
    assert recheck(model, curve, pgd("linf"), samples).robust == (np.count_nonzero(radius > 0.04),)


def test_the_picture_shows_curve_check_training_and_alarm(tmp_path):
    curve = handmade([0, 0.02, math.inf], grid=(Fraction(2, 255), Fraction(8, 255)), norm="linf")
    check = Recheck((Fraction(2, 255),), (2,), 3, 2, 3, 0.02)
    figure = draw_curve(curve, "three images", check, Fraction(8, 255))
    (axes,) = figure.axes
    labels = axes.get_legend_handles_labels()[1]
    assert any("training, 8/255" in label for label in labels)
    assert "clean accuracy, 66.7 %" in labels
    assert any("check" in label for label in labels)
    line = next(line for line in axes.lines if line.get_label() == "robust accuracy")
    assert list(line.get_xdata()) == pytest.approx([0, 2, 8])
    assert list(line.get_ydata()) == pytest.approx([200 / 3, 200 / 3, 100 / 3])
    assert "1/255" in axes.get_xlabel()
    assert "ALARM" in axes.get_title()
    figure.savefig(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 5000


def test_the_picture_of_another_norm_has_no_grey_levels_and_no_alarm():
    figure = draw_curve(handmade([0.5, 3]), "two images")
    assert figure.axes[0].get_xlabel() == "eps (l2)"
    assert figure.axes[0].get_title() == ""
