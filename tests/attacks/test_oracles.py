"""Attacks find the exact robust accuracy of models whose robust radii are known; the radii are checked first."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from helpers.oracles import NORMS, ORACLES, PIXELS, linear, plane
from scipy.optimize import linprog, minimize

from lightning_paf.attacks import (
    APGD,
    FAB,
    FGSM,
    PGD,
    RSFGSM,
    Attack,
    AutoAttack,
    ReferenceAutoAttack,
    Restarts,
    Square,
    WorstOf,
)
from lightning_paf.functional import cross_entropy, margin

DUAL = {"linf": 1, "l2": 2, "l1": math.inf}


def halfspaces(oracle, sample):
    """For every other class the gradient and the value of `z_y - z_j` at a sample; and the sample."""
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


def linf_program(w, lead, x):
    n = len(x)  # variables: delta and its largest size
    rows = np.vstack([np.c_[np.eye(n), -np.ones(n)], np.c_[-np.eye(n), -np.ones(n)], np.r_[w, 0]])
    bounds = [*zip(-x, 1 - x, strict=True), (0, None)]
    return linprog(np.r_[np.zeros(n), 1], rows, np.r_[np.zeros(2 * n), -lead], bounds=bounds)


def l2_program(w, lead, x):
    limit = {"type": "ineq", "fun": lambda d: -lead - w @ d, "jac": lambda d: -w}
    settings = {"bounds": [*zip(-x, 1 - x, strict=True)], "options": {"ftol": 1e-14, "maxiter": 500}}
    found = minimize(lambda d: d @ d, 0 * x, jac=lambda d: 2 * d, constraints=[limit], **settings)
    found.fun = math.sqrt(found.fun)
    return found


def l1_program(w, lead, x):  # delta = up - down
    bounds = [*((0, 1 - v) for v in x), *((0, v) for v in x)]
    return linprog(np.ones(2 * len(x)), [np.r_[w, -w]], [-lead], bounds=bounds)


@pytest.mark.parametrize(
    ("norm", "program", "classes", "rel"),
    [("linf", linf_program, 10, 1e-6), ("l2", l2_program, 2, 1e-4), ("l1", l1_program, 10, 1e-6)],
)
def test_saturated_images_have_the_radius_of_a_program(norm, program, classes, rel):
    oracle = linear(classes, 6, saturated=True, seed=7)
    assert 0.1 < ((oracle.x == 0) | (oracle.x == 1)).float().mean() < 0.9
    for sample in range(6):
        spaces, x = halfspaces(oracle, sample)
        found = [program(w, lead, x) for w, lead in spaces]
        assert oracle.radii[norm][sample] == pytest.approx(min(p.fun for p in found if p.success), rel=rel)


@pytest.mark.parametrize("norm", NORMS)
def test_radii_of_the_plane_are_the_first_crossings_of_rays(norm):
    """Along a ray the prediction changes nowhere below the radius, and on the best of many rays hardly above it."""
    oracle = plane(6)
    reduce, head = oracle.model[:2], oracle.model[2:]
    angles = torch.linspace(0, 2 * torch.pi, 721)
    rays = torch.stack([angles.cos(), angles.sin()], 1)
    rays /= rays.norm(p={"linf": math.inf, "l2": 2, "l1": 1}[norm], dim=1, keepdim=True)
    with torch.no_grad():
        for x, y, radius in zip(oracle.x, oracle.y, oracle.radii[norm], strict=True):
            fraction = torch.linspace(0, 1.1, 441)
            radius /= {"linf": 1, "l2": math.sqrt(PIXELS / 2), "l1": PIXELS / 2}[norm]
            other = head(reduce(x[None]) + radius * fraction[:, None, None] * rays).argmax(2) != y
            assert 0.98 <= fraction[other.any(1)].min() <= 1.01


@pytest.mark.parametrize("name", ORACLES)
def test_clean_images_are_classified_correctly_and_half_of_them_are_robust(name):
    oracle = ORACLES[name]()
    logits = oracle.model(oracle.x)
    assert torch.equal(logits.argmax(1), oracle.y)
    assert len(oracle.y.unique()) == logits.shape[1]
    assert oracle.x.aminmax().min >= 0
    assert oracle.x.aminmax().max <= 1
    for case in map(oracle.case, NORMS):
        assert 0.4 < (case.radii > case.eps).double().mean() < 0.6
        assert len(case.y) > 30


def pgd(eps, loss=margin, start="none", **options):
    return PGD(eps, step_size=eps / 10, steps=50, best=True, loss=loss, start=start, **options)


def ensemble(*attacks):
    return partial(AutoAttack, version="custom", attacks=[*attacks])


TWO_CLASSES = {  # the gradient of the loss is a constant direction
    "fgsm": FGSM,
    "pgd from a Gaussian start": partial(pgd, start="gaussian", loss=cross_entropy),
}
ANY_NORM = {
    "pgd": pgd,
    "restarts": lambda eps, norm: Restarts(pgd(eps, start="uniform", norm=norm), 3),
    "worst-of": lambda eps, norm: WorstOf([pgd(eps, loss, norm=norm) for loss in (margin, cross_entropy)]),
}
ANY_CLASSES = {
    "apgd-ce": APGD,
    "fab-t": FAB,
    "square": lambda eps, norm: Square(eps, norm=norm, queries=2000 if norm == "linf" else 1000),
    "autoattack": ensemble("apgd-ce", "fab-t"),
}
FOUR_CLASSES = {  # the DLR loss needs them
    "apgd-dlr": partial(APGD, search_loss="dlr", restarts=5),
    "apgd-t": partial(APGD, search_loss="dlr-targeted"),
    "autoattack": ensemble("apgd-ce", "apgd-t", "fab-t"),
}
# In l2, Square reaches 60 % to 85 % of the largest rise of a linear function for any number of queries, because its
# perturbations are sums of bumps.
FRACTION_OF_EPS = {("square", "l2"): 0.6}


def checks():
    """For every oracle and norm the attacks that must find its exact robust accuracy."""
    for name in ORACLES:
        for norm in NORMS:
            attacks = ANY_NORM if norm == "l1" else ANY_NORM | ANY_CLASSES
            if "2 classes" in name:
                rs_fgsm = {"rs-fgsm across the ball": lambda eps, norm: RSFGSM(eps, step_size=2 * eps)}
                attacks = attacks | TWO_CLASSES | (rs_fgsm if norm == "linf" else {})
            if norm != "l1" and "2 classes" not in name:
                attacks = attacks | FOUR_CLASSES
            if "4 classes" in name and norm == "linf":  # one oracle is enough for the slowest
                attacks = attacks | {"standard autoattack": AutoAttack}
            for attack, make in attacks.items():
                yield pytest.param(
                    name, norm, make, FRACTION_OF_EPS.get((attack, norm), 1.0), id=f"{attack}-{norm}-{name}"
                )


@pytest.mark.parametrize(("name", "norm", "make", "fraction"), list(checks()))
def test_attack_finds_the_exact_robust_accuracy(name, norm, make, fraction):
    case = ORACLES[name]().case(norm)
    assert case.check(make(case.eps, norm=norm), fraction) == (0, 0)


@pytest.mark.parametrize("norm", NORMS)
def test_reference_autoattack_finds_the_exact_robust_accuracy(norm):
    case = plane(10).case(norm)
    attack = ReferenceAutoAttack(case.eps, norm=norm, version="custom", attacks=["apgd-ce", "fab-t"])
    assert case.check(attack) == (0, 0)


class Moved(Attack):
    """Applies a function to the images."""

    def __init__(self, case, move=lambda x: x):
        super().__init__(case.eps, norm=case.norm)
        self.move = move

    def perturb(self, forward, x, y, loss):
        return self.move(x)


def test_idle_attack_is_caught():
    case = linear(10, 30).case("linf")
    assert case.check(Moved(case)) == ((case.radii < case.eps).sum(), 0)


def test_attack_that_stops_short_is_caught_unless_that_is_expected():
    case = linear(2).case("l2")
    half = PGD(0.8 * case.eps, norm="l2", step_size=case.eps, steps=5)
    assert case.check(half).missed > 0
    assert case.check(half, fraction=0.79) == (0, 0)


@pytest.mark.parametrize("norm", NORMS)
def test_attack_that_leaves_the_ball_is_caught(norm):
    case = linear(10, 30).case(norm)
    assert case.check(PGD(1.1 * case.eps, norm=norm, step_size=case.eps / 5, steps=30, loss=margin)).impossible > 0


@pytest.mark.parametrize("value", [-1e-3, 1 + 1e-3, math.nan])
def test_attack_that_leaves_the_pixel_range_is_caught(value):
    case = linear(10, 30, saturated=True).case("linf")
    limit = 0.0 if value < 0.5 else 1.0
    assert case.check(Moved(case, lambda x: x.where(x != limit, torch.tensor(value)))).impossible > 20
