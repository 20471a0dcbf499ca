"""The curve of a linear model is known in closed form; a model that hides its gradients must raise an alarm."""

import json
import math
from fractions import Fraction
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from lightning_paf.analysis.security_curve import SecurityCurve, fixed_eps, minimum_norm
from lightning_paf.analysis.security_curve_check import Recheck, draw_curve, recheck
from lightning_paf.attacks import PGD, Attack, WorstOf
from lightning_paf.attacks.fab import FAB
from lightning_paf.evaluation import Samples
from lightning_paf.functional.losses import margin

DUAL = {"linf": 1, "l2": 2}
GRID = {"linf": [Fraction(n, 100) for n in (1, 2, 3, 4, 6, 8, 12)], "l2": [0.05, 0.1, 0.15, 0.2, 0.3, 0.4]}


def linear() -> nn.Sequential:
    """Two classes, with a boundary through the grey image."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    model[1].bias.data = -model(torch.full((1, 1, 4, 4), 0.5)).detach()[0]
    return model


def problem(norm: str, n: int = 40):
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


def pgd(norm: str, cls: type[PGD] = PGD, **options):
    return lambda eps: cls(eps, norm=norm, step_size=float(eps) / 4, steps=10, **{"loss": margin} | options)


class Short(FAB):
    """Goes half of the way to the boundary."""

    def minimum(self, forward, x, y):
        assert torch.is_grad_enabled()
        assert not any(parameter.requires_grad for parameter in forward.parameters())
        x_adv, distances = super().minimum(forward, x, y)
        return x + 0.5 * (x_adv - x), distances


class Idle(Attack):
    def perturb(self, forward, x, y, loss):
        return x


both_norms = pytest.mark.parametrize("norm", ["linf", "l2"])


@both_norms
def test_fixed_eps_brackets_the_radius_and_the_check_agrees(norm):
    model, samples, radius = problem(norm)
    curve = fixed_eps(model, samples, pgd(norm), GRID[norm], batch_size=7)
    grid = np.array([0.0, *map(float, GRID[norm]), math.inf])
    above = np.searchsorted(grid, radius)
    robust = radius > 0
    assert 0 < robust.sum() < len(radius)
    assert curve.norm == norm
    np.testing.assert_array_equal(curve.fooled, np.where(robust, grid[above], 0))
    np.testing.assert_array_equal(curve.robust, np.where(robust, grid[above - 1], 0))
    assert [a.correct for _, a in curve.points] == [np.count_nonzero(radius > float(e)) for e in (0, *GRID[norm])]
    check = recheck(model, curve, pgd(norm), samples)
    assert check.eps == (GRID[norm][0], GRID[norm][len(GRID[norm]) // 2], GRID[norm][-1])
    assert check.robust == tuple(np.count_nonzero(radius > float(eps)) for eps in check.eps)
    assert check.robust_at_one == (0 if norm == "linf" else None)
    assert (check.reversed, check.alarms) == (0, [])


@both_norms
def test_minimum_norm_finds_the_radius_and_the_check_agrees(norm):
    model, samples, radius = problem(norm)
    curve = minimum_norm(model, samples, FAB(norm=norm, steps=20), GRID[norm], batch_size=7)
    np.testing.assert_allclose(curve.fooled, radius, rtol=0.02, atol=1e-6)
    assert curve.search["method"] == "minimum-norm"
    assert "eps" not in curve.search
    check = recheck(model, curve, pgd(norm), samples)
    assert (check.reversed, check.alarms) == (0, [])


def test_search_is_described_without_the_eps_of_the_grid():
    model, samples, _ = problem("linf", n=8)
    described = fixed_eps(model, samples, lambda e: WorstOf([PGD(e), PGD(e, steps=20)]), [0.01, 0.02]).search
    assert described["method"] == "fixed-eps"
    assert [attack["steps"] for attack in described["attacks"]] == [10, 20]
    assert not {"eps", "eps_value", "norm"} & {*described, *described["attacks"][0]}


def test_minimum_that_does_not_fool_the_model_does_not_count():
    model, samples, radius = problem("linf")
    curve = minimum_norm(model, samples, Short(steps=5), GRID["linf"])
    assert np.isinf(curve.fooled[radius > 0]).all()


class Counting(PGD):
    """Records eps and number of images of each call; the first call after `limit` is interrupted."""

    calls: ClassVar[list[tuple[float, int]]]
    limit = 10**6

    def perturb(self, forward, x, y, loss):
        Counting.calls.append((float(self.eps), len(x)))
        if len(Counting.calls) > Counting.limit:
            raise KeyboardInterrupt
        return super().perturb(forward, x, y, loss)


@pytest.fixture
def calls(monkeypatch):
    monkeypatch.setattr(Counting, "calls", [], raising=False)
    return Counting.calls


def test_each_eps_is_tried_on_the_samples_robust_at_smaller_ones(calls):
    model, samples, radius = problem("linf")
    fixed_eps(model, samples, pgd("linf", Counting), GRID["linf"])
    robust_before = [np.count_nonzero(radius > float(eps)) for eps in (0, *GRID["linf"][:-1])]
    assert calls == [(float(eps), n) for eps, n in zip(GRID["linf"], robust_before, strict=True)]


def test_interrupted_curve_resumes_without_repeating_finished_blocks(calls, tmp_path, monkeypatch):
    model, samples, _ = problem("linf")

    def curve(folder):
        calls.clear()
        found = fixed_eps(model, samples, pgd("linf", Counting), GRID["linf"], batch_size=7, folder=folder)
        return found.content(), list(calls)

    expected, all_calls = curve(None)
    interrupted = 7  # in the second eps
    monkeypatch.setattr(Counting, "limit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        curve(tmp_path)
    monkeypatch.setattr(Counting, "limit", 10**6)
    found, rest = curve(tmp_path)
    assert found == expected
    assert rest == all_calls[interrupted:]
    assert curve(tmp_path) == (expected, [])
    names = [path.name for path in (tmp_path / "state").iterdir()]
    assert sum(name.startswith("curve_linf_1-50-") for name in names) == 1
    assert len(names) == len(GRID["linf"])


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
def test_grid_must_increase_and_samples_must_exist(grid):
    model, samples, _ = problem("linf", n=8)
    none = Samples.of(torch.zeros(0, 1, 4, 4), torch.zeros(0, dtype=torch.long))
    for search, attack in ((fixed_eps, pgd("linf")), (minimum_norm, FAB())):
        with pytest.raises(ValueError, match="must increase from above 0"):
            search(model, samples, attack, grid)
        with pytest.raises(ValueError, match="must have at least one sample"):
            search(model, none, attack, [0.1])


class Masked(nn.Module):
    """Quantised or saturated logits: the gradient of their cross-entropy is zero."""

    def __init__(self, net, mask):
        super().__init__()
        self.net, self.mask = net, mask

    def forward(self, x):
        return self.mask(self.net(x))


@pytest.mark.parametrize("mask", [lambda logits: (logits * 100).round() / 100, lambda logits: logits * 1e5])
@pytest.mark.parametrize("start", ["none", "uniform"])
def test_masked_gradients_raise_an_alarm(mask, start):
    model = linear()
    x = 0.5 + 0.3 * (torch.rand(60, 1, 4, 4) - 0.5)
    masked = Masked(model, mask)
    with torch.no_grad():
        samples = Samples.of(x, masked(x).argmax(1))

    def alarms(evaluated):
        attack = pgd("linf", loss=None, start=start)  # the gradient of the cross-entropy vanishes on both
        return recheck(evaluated, fixed_eps(evaluated, samples, attack, GRID["linf"]), attack, samples).alarms

    assert any("withstand eps 1" in alarm for alarm in alarms(masked))
    assert alarms(model) == []


def test_attack_that_fails_at_large_eps_raises_every_alarm():
    model, samples, radius = problem("linf")
    attack = lambda eps: Idle(eps) if eps > 0.07 else pgd("linf")(eps)  # noqa: E731
    check = recheck(model, fixed_eps(model, samples, attack, GRID["linf"]), attack, samples)
    total, correct = len(samples), np.count_nonzero(radius > 0)
    assert check.robust == (np.count_nonzero(radius > 0.01), np.count_nonzero(radius > 0.04), correct)
    assert check.reversed == np.count_nonzero((radius > 0) & (radius < 0.06)) > 0
    rises, reversal, at_one = check.alarms
    assert f"{check.robust[1]} of {total} samples withstand 1/25, but {correct} withstand 3/25" in rises
    assert f"{check.reversed} of {total}" in reversal
    assert f"{correct} of {total} samples withstand eps 1" in at_one


def test_curve_that_missed_what_the_check_finds_is_reversed():
    model, samples, radius = problem("linf")
    check = recheck(model, fixed_eps(model, samples, Idle, GRID["linf"]), pgd("linf"), samples)
    # Where both attacked at the same eps and disagree, only their random starts may differ: 0.12 does not count.
    assert check.reversed == np.count_nonzero((radius > 0) & (radius < 0.04)) > 0


@pytest.mark.parametrize(("factor", "reversed_"), [(0.5, False), (1.02, False), (1.5, True)])
def test_minimum_is_reversed_where_the_check_finds_clearly_less(factor, reversed_):
    model, samples, radius = problem("linf")
    claimed = factor * 0.04 * (radius > 0)
    curve = SecurityCurve("linf", {}, (0.04,), samples.ids, claimed, np.where(radius > 0.04, math.inf, claimed))
    check = recheck(model, curve, pgd("linf"), samples)
    assert check.robust == (np.count_nonzero(radius > 0.04),), "a grid of one is checked once"
    assert check.reversed == (np.count_nonzero((radius > 0) & (radius < 0.04)) if reversed_ else 0)


def test_few_reversals_raise_no_alarm():
    assert Recheck((0.1,), (5,), 100, 2, 2, 0.02).alarms == []
    assert len(Recheck((0.1,), (5,), 100, 3, 3, 0.02).alarms) == 2


def test_figure_shows_curve_check_training_and_alarm():
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
