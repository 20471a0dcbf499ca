"""The oracles are held against the dual norm, programs and a fine grid; then attacks against them."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize

from lightning_paf.attacks import PGD, Attack, WorstOf
from lightning_paf.evaluation.oracles import PIXELS, linear, oracles, plane
from lightning_paf.functional import margin

NORMS = ["linf", "l2", "l1"]
DUAL = {"linf": 1, "l2": 2, "l1": math.inf}
ORDER = {"linf": math.inf, "l2": 2, "l1": 1}


def halfspaces(oracle, sample):
    """For every other class the gradient and the value of `z_y - z_j` at a sample."""
    layer, y = oracle.model[1], oracle.y[sample]
    weight, bias = (parameter.detach().double().numpy() for parameter in (layer.weight, layer.bias))
    weight, bias = weight[y] - weight, bias[y] - bias
    x = oracle.x[sample].flatten().double().numpy()
    return [(weight[j], weight[j] @ x + bias[j]) for j in range(len(bias)) if j != y], x


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", [2, 10])
def test_grey_images_have_the_radius_of_the_dual_norm(classes, norm):
    oracle = linear(classes, 20)
    for sample in range(20):
        spaces, x = halfspaces(oracle, sample)
        radius = min(lead / np.linalg.norm(w, DUAL[norm]) for w, lead in spaces)
        if radius < min(x.min(), 1 - x.max()):  # else a single pixel might leave the range
            assert oracle.radii[norm][sample] == pytest.approx(radius, rel=1e-9)


def smallest_by_program(w, lead, x, norm):
    """Smallest delta with `w . delta <= -lead` and `x + delta` in [0, 1], as a linear program."""
    n = len(x)
    if norm == "linf":  # variables delta and its largest size
        rows = np.vstack([np.c_[np.eye(n), -np.ones(n)], np.c_[-np.eye(n), -np.ones(n)], np.r_[w, 0]])
        found = linprog(
            np.r_[np.zeros(n), 1], rows, np.r_[np.zeros(2 * n), -lead], bounds=[*zip(-x, 1 - x, strict=True), (0, None)]
        )
    else:  # l1: delta = up - down
        found = linprog(
            np.ones(2 * n), [np.r_[w, -w]], [-lead], bounds=[*((0, 1 - v) for v in x), *((0, v) for v in x)]
        )
    return found.fun if found.success else math.inf


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_saturated_images_have_the_radius_of_a_linear_program(norm):
    oracle = linear(10, 8, saturated=True, seed=7)
    at_limits = (oracle.x == 0) | (oracle.x == 1)
    assert 0.1 < at_limits.float().mean() < 0.9
    for sample in range(8):
        spaces, x = halfspaces(oracle, sample)
        radius = min(smallest_by_program(w, lead, x, norm) for w, lead in spaces)
        assert oracle.radii[norm][sample] == pytest.approx(radius, rel=1e-6)


def test_saturated_images_have_the_l2_radius_of_a_quadratic_program():
    oracle = linear(2, 4, saturated=True)
    for sample in range(4):
        [(w, lead)], x = halfspaces(oracle, sample)
        limit = {"type": "ineq", "fun": lambda d, w=w, lead=lead: -lead - w @ d, "jac": lambda d, w=w: -w}
        found = minimize(
            lambda d: d @ d,
            np.zeros(PIXELS),
            jac=lambda d: 2 * d,
            bounds=[*zip(-x, 1 - x, strict=True)],
            constraints=[limit],
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert oracle.radii["l2"][sample] == pytest.approx(math.sqrt(found.fun), rel=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_radii_of_the_plane_agree_with_a_fine_grid(norm):
    """No grid point nearer than the radius is of another class, and one hardly further is."""
    oracle = plane(6)
    network, reduce = oracle.model[2:], oracle.model[:2]
    factor = {"linf": 1, "l2": math.sqrt(PIXELS / 2), "l1": PIXELS / 2}[norm]
    with torch.no_grad():
        features = reduce(oracle.x)
        for feature, label, radius in zip(features, oracle.y, oracle.radii[norm] / factor, strict=True):
            line = 1.2 * radius * torch.linspace(-1, 1, 401)
            offsets = torch.cartesian_prod(line, line)
            sizes = offsets.double().norm(p=ORDER[norm], dim=1)
            other = network(feature + offsets).argmax(1) != label
            nearest = sizes[other].min().item()
            assert radius * 0.9999 <= nearest <= radius * 1.03


def test_the_pieces_of_the_plane_cover_it_once():
    from lightning_paf.evaluation import oracles as module

    layers = module._plane_network(np.random.default_rng(3))
    regions = module._regions(layers)
    x, y = ([polygon[:, i] for _, polygon in regions] for i in (0, 1))
    areas = [abs(a @ np.roll(b, 1) - b @ np.roll(a, 1)) / 2 for a, b in zip(x, y, strict=True)]
    assert sum(areas) == pytest.approx(4)
    assert len(regions) > 50
    for wins, polygon in regions:
        logits = module._values(layers, polygon.mean(0)[None])[0]
        assert logits[wins] >= logits.max() - 1e-9


def test_every_oracle_is_right_on_clean_images_and_has_all_classes():
    for oracle in oracles():
        with torch.no_grad():
            logits = oracle.model(oracle.x)
        assert torch.equal(logits.argmax(1), oracle.y)
        assert len(oracle.y.unique()) == logits.shape[1]
        assert oracle.x.aminmax().min >= 0
        assert oracle.x.aminmax().max <= 1


@pytest.mark.parametrize("norm", NORMS)
def test_half_of_a_case_is_robust_and_none_is_a_matter_of_rounding(norm):
    for oracle in oracles():
        case = oracle.case(norm, margin=0.05)
        assert 0.4 < case.robust.double().mean() < 0.6
        assert len(case.y) > 30
        again = {radius for radius in oracle.radii[norm] if abs(radius - case.eps) <= 0.05 * case.eps}
        assert len(case.y) == len(oracle.y) - len(again)


def towards(label):
    """Loss that makes PGD go for one class; linear models then have one optimum."""
    return lambda z, y: z[:, label] - z.gather(1, y[:, None])[:, 0]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("number", range(4))
def test_pgd_towards_every_class_reaches_every_oracle(number, norm):
    oracle = oracles()[number]
    case = oracle.case(norm)
    classes = oracle.model(case.x[:1]).shape[1]
    attack = WorstOf(
        [
            PGD(case.eps, norm=norm, step_size=case.eps / 10, steps=50, best=True, start="none", loss=towards(k))
            for k in range(classes)
        ]
    )
    torch.manual_seed(0)
    finding = case.check(attack)
    assert finding.ok, finding
    assert finding.survived == finding.robust


class Crippled(Attack):
    """Returns what it got, moved in a given way."""

    def __init__(self, case, move=lambda x: x):
        super().__init__(case.eps, norm=case.norm)
        self.move = move

    def perturb(self, forward, x, y, loss):
        return self.move(x)


def test_an_attack_without_a_step_is_caught():
    case = linear(10, 30).case("linf")
    finding = case.check(Crippled(case))
    assert not finding.ok
    assert finding.missed == finding.total - finding.robust
    assert finding.impossible == 0


def test_an_attack_with_one_short_step_is_caught():
    case = linear(10, 30).case("l2")
    with pytest.warns(UserWarning, match="cannot cross the ball"):
        attack = PGD(case.eps, norm="l2", steps=1, step_size=case.eps / 10, start="none")
    assert case.check(attack).missed > 5


@pytest.mark.parametrize("norm", NORMS)
def test_an_attack_that_leaves_the_ball_is_caught(norm):
    case = linear(10, 30).case(norm)
    further = PGD(1.1 * case.eps, norm=norm, step_size=case.eps / 5, steps=30, loss=margin)
    finding = case.check(further)
    assert not finding.ok
    assert finding.impossible > 0


@pytest.mark.parametrize("value", [-1e-3, 1 + 1e-3, math.nan])
def test_an_attack_that_leaves_the_pixel_range_is_caught(value):
    case = linear(10, 30, saturated=True).case("linf")
    limit = 0.0 if value < 0.5 else 1.0
    finding = case.check(Crippled(case, lambda x: x.where(x != limit, torch.tensor(value))))
    assert finding.impossible > 20
