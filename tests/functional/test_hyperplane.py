import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_paf.functional import hyperplane
from lightning_paf.functional.hyperplane import shift_l2, shift_linf, shift_of

SHIFTS = {"linf": shift_linf, "l2": shift_l2}
norms = pytest.mark.parametrize("norm", ["linf", "l2"])


def excess_of(points, normal, offset):
    return (points * normal[:, None]).sum(2) - offset[:, None]


def shift(norm, point, normal, offset):
    """Shift points (N, D), one per hyperplane."""
    points = point[:, None]
    return SHIFTS[norm](points, normal, excess_of(points, normal, offset))[:, 0]


def reference(norm, point, normal, offset):
    from pyautoattack import fab_projections

    project = {"linf": fab_projections.projection_linf, "l2": fab_projections.projection_l2}[norm]
    return project(point.clone(), normal.clone(), offset.clone())


def brute(norm, point, normal, excess):
    """One row in double precision: coordinates move at their speeds until the hyperplane is reached, by bisection."""
    t, w = point.numpy(), normal.numpy()
    heading = -np.sign(w) * np.sign(excess)
    room = np.where(heading > 0, 1 - t, t)
    speed = (w != 0).astype(float) if norm == "linf" else np.abs(w)
    low, high = 0.0, 1e12
    if (np.abs(w) * room)[w != 0].sum() > abs(excess):
        for _ in range(300):
            middle = (low + high) / 2
            enough = (np.abs(w) * np.minimum(middle * speed, room)).sum() >= abs(excess)
            low, high = (low, middle) if enough else (middle, high)
    return heading * np.minimum(high * speed, room)


@st.composite
def problems(draw):
    """Points with many coordinates at the ends of their range, normals with zeros, hyperplanes in and outside the box.

    No hyperplane touches the box in a corner only, where the package does not move at all.
    """
    n, d = draw(st.integers(1, 5)), draw(st.integers(1, 12))
    pixels = st.sampled_from([0.0, 0.0, 1.0, 1.0, 0.5, 0.25, 0.1, 0.9, 0.003])
    weights = st.sampled_from([0.0, 1.0, -1.0, 0.5, -2.0, 0.01, -0.3, 7.0])
    point = torch.tensor(draw(st.lists(pixels, min_size=n * d, max_size=n * d))).view(n, d)
    normal = torch.tensor(draw(st.lists(weights, min_size=n * d, max_size=n * d))).view(n, d)
    distances = st.sampled_from([-1.2, -0.871, -0.133, 0.0, 0.0471, 0.613, 1.5])
    distance = torch.tensor(draw(st.lists(distances, min_size=n, max_size=n)))
    return point, normal, (point * normal).sum(1) + distance * normal.abs().sum(1)


@norms
@settings(max_examples=50, deadline=None, derandomize=True)
@given(problem=problems())
def test_agrees_with_the_package_and_with_bisection_in_double_precision(norm, problem):
    # If only a coordinate of weight 0.01 can still move, it magnifies the rounding of the sum.
    torch.testing.assert_close(shift(norm, *problem), reference(norm, *problem), atol=5e-5, rtol=0)
    point, normal, offset = (part.double() for part in problem)
    excess = excess_of(point[:, None], normal, offset)
    found = SHIFTS[norm](point[:, None], normal, excess)[:, 0]
    for row in range(len(point)):
        exact = brute(norm, point[row], normal[row], float(excess[row]))
        np.testing.assert_allclose(found[row].numpy(), exact, atol=1e-9)


def random_problem(n=6, d=3072):
    point = torch.rand(n, d).mul_(1.4).sub_(0.2).clamp_(0, 1)
    normal = torch.randn(n, d) * torch.rand(n, d) ** 2
    return point, normal, (point * normal).sum(1) + 0.02 * normal.abs().sum(1) * torch.randn(n).sign()


@norms
def test_the_result_lies_on_the_hyperplane_in_the_box(norm):
    point, normal, offset = (part.double() for part in random_problem(d=300))
    moved = point + shift(norm, point, normal, offset)
    torch.testing.assert_close((moved * normal).sum(1), offset, atol=1e-9, rtol=0)
    assert moved.min() >= 0
    assert moved.max() <= 1


@norms
def test_large_images_agree_with_the_package_and_with_float64(norm):
    point, normal, offset = random_problem()
    expected = reference(norm, point, normal, offset)
    torch.testing.assert_close(shift(norm, point, normal, offset), expected, atol=2e-6, rtol=0)
    offset = offset.double()
    excess = excess_of(point.double()[:, None], normal.double(), offset)
    single = SHIFTS[norm](point[:, None], normal, excess.float())
    double = SHIFTS[norm](point.double()[:, None], normal.double(), excess)
    torch.testing.assert_close(single.double(), double, atol=1e-6, rtol=1e-5)


@norms
def test_several_points_can_share_a_normal(norm):
    first, normal, offset = random_problem(d=40)
    second = (first + 0.1 * torch.randn_like(first)).clamp(0, 1)
    points = torch.stack((first, second), dim=1)
    both = SHIFTS[norm](points, normal, excess_of(points, normal, offset))
    for k, point in enumerate((first, second)):
        torch.testing.assert_close(both[:, k], shift(norm, point, normal, offset))


@norms
def test_a_hyperplane_outside_the_box_leads_to_the_nearest_corner(norm):
    point, normal = torch.tensor([[0.2, 0.9, 0.5, 0.4]]), torch.tensor([[1.0, -3.0, 0.0, 1e-4]])
    found = SHIFTS[norm](point[:, None], normal, torch.tensor([[100.0]]))[:, 0]
    assert torch.equal(point + found, torch.tensor([[0.0, 1.0, 0.5, 0.0]]))


@norms
def test_zero_normals_and_zero_excess_give_no_shift(norm):
    points = torch.rand(3, 2, 7)
    assert not SHIFTS[norm](points, torch.zeros(3, 7), torch.randn(3, 2)).any()
    assert not SHIFTS[norm](points, torch.randn(3, 7), torch.zeros(3, 2)).any()
    assert SHIFTS[norm](points[:0], torch.randn(0, 7), torch.zeros(0, 2)).shape == (0, 2, 7)


@norms
def test_gradients_whose_squares_underflow(norm):
    point, normal, offset = random_problem(d=30)
    points, excess = point[:, None], excess_of(point[:, None], normal, offset)
    small = SHIFTS[norm](points, 1e-25 * normal, 1e-25 * excess)
    torch.testing.assert_close(small, SHIFTS[norm](points, normal, excess), atol=1e-6, rtol=1e-4)


@norms
def test_nan_stays_in_its_row(norm):
    point, normal, offset = random_problem(n=3, d=10)
    clean = shift(norm, point, normal, offset)
    normal[1, 4] = torch.nan
    found = shift(norm, point, normal, offset)
    assert torch.equal(found[[0, 2]], clean[[0, 2]])
    assert found[1].isnan().any()


@norms
def test_the_fixed_number_of_steps_on_devices_is_sufficient(norm, monkeypatch):
    # With limits and weights on a logarithmic scale, many coordinates reach their limits one after the other.
    point = torch.logspace(-6, 0, 400, dtype=torch.float64).expand(40, 400).float()
    normal = torch.logspace(0, -4, 400).expand(40, 400)
    offset = (point * normal).sum(1) * torch.linspace(0.001, 0.999, 40)
    many = shift(norm, point, normal, offset)
    monkeypatch.setattr(hyperplane, "_CPU_STEPS", hyperplane._DEVICE_STEPS)
    torch.testing.assert_close(shift(norm, point, normal, offset), many, atol=1e-6, rtol=1e-5)
    monkeypatch.setattr(hyperplane, "_CPU_STEPS", 2)
    assert not torch.allclose(shift(norm, point, normal, offset), many, atol=1e-4)


def test_shifts_are_found_by_norm():
    assert shift_of("linf") is shift_linf
    assert shift_of("l2") is shift_l2
    with pytest.raises(ValueError, match="norm must be one of linf, l2, got 'l1'"):
        shift_of("l1")
