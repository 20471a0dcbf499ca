import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_paf.functional import geometry_of

NORMS = ["linf", "l2", "l1"]
DUAL = {"linf": 1, "l2": 2, "l1": math.inf}
examples = given(
    norm=st.sampled_from(NORMS), radius=st.floats(1e-3, 20), spread=st.floats(1e-3, 30), seed=st.integers(0, 9999)
)
quick = settings(max_examples=40, deadline=None)


def noise(seed, spread, n=5):
    return torch.randn(n, 2, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * spread


@examples
@quick
def test_projection_is_the_nearest_point_of_the_ball(norm, radius, spread, seed):
    ball, delta = geometry_of(norm), noise(seed, spread)
    inside = delta * (0.99 * radius / ball.size(delta).clamp_min(radius)).view(-1, 1, 1, 1)
    torch.testing.assert_close(ball.project(inside, radius), inside)
    p = ball.project(delta, radius)
    assert (ball.size(p) <= radius * (1 + 1e-12)).all()
    torch.testing.assert_close(ball.project(p, radius), p)
    # The projection p of d onto a convex set is characterised by <d - p, q - p> <= 0 for every q of the set.
    for trial in range(5):
        q = ball.project(noise(seed + trial + 1, 2 * radius), radius)
        product = ((delta - p) * (q - p)).flatten(1).sum(1)
        assert (product <= 1e-9 * (1 + radius) * (1 + spread)).all()


def test_l1_projection_by_hand():
    delta = torch.tensor([[3.0, -1.0, 0.5], [0.2, -0.3, 0.1]])
    projected = geometry_of("l1").project(delta, 2.0)
    torch.testing.assert_close(projected, torch.tensor([[2.0, 0.0, 0.0], [0.2, -0.3, 0.1]]))


@examples
@quick
def test_ascent_is_the_dual_vector(norm, radius, spread, seed):
    gradient = noise(seed, spread)
    ball = geometry_of(norm)
    direction = ball.ascent(gradient, torch.zeros_like(gradient), None)
    torch.testing.assert_close(ball.size(direction), torch.ones(5, dtype=torch.float64))
    gain = (direction * gradient).flatten(1).sum(1)  # with 18 pixels the l1 step changes one of them: exactly steepest
    torch.testing.assert_close(gain, gradient.flatten(1).norm(p=DUAL[norm], dim=1))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_ascent_is_finite_for_extreme_gradients(norm, scale):
    gradient = torch.randn(4, 1, 5, 5) * scale
    ball = geometry_of(norm)
    direction = ball.ascent(gradient, torch.zeros_like(gradient), None)
    torch.testing.assert_close(ball.size(direction), torch.full((4,), float(scale > 0)))


def test_l1_ascent_skips_pixels_that_cannot_move():
    gradient = torch.tensor([[5.0, -4.0, 3.0]])
    direction = geometry_of("l1").ascent(gradient, torch.tensor([[1.0, 0.0, 0.5]]), (0.0, 1.0))
    assert direction.tolist() == [[0.0, 0.0, 1.0]]


@pytest.mark.parametrize("norm", NORMS)
def test_uniform_fills_the_ball_evenly(norm):
    # In D dimensions the size of a uniform point, to the power D, is uniform on [0, 1]: mean 1/2, variance 1/12.
    torch.manual_seed(1)
    x = torch.zeros(20_000, 1, 2, 2)
    ball = geometry_of(norm)
    points = ball.uniform(x, 0.3)
    fraction = (ball.size(points) / 0.3) ** 4
    assert fraction.max() <= 1 + 1e-5
    assert fraction.mean().item() == pytest.approx(1 / 2, abs=0.01)
    assert fraction.var().item() == pytest.approx(1 / 12, abs=0.005)
    assert points.mean(0).abs().max() < 0.01  # both signs


@given(
    norm=st.sampled_from(NORMS),
    radius=st.one_of(st.floats(1e-4, 0.9), st.integers(1, 255).map(lambda k: k / 255)),
    seed=st.integers(0, 9999),
)
@settings(max_examples=60, deadline=None)
def test_move_stays_in_ball_and_box_in_single_precision(norm, radius, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(4, 3, 6, 6, generator=generator) ** 3
    delta = torch.randn(4, 3, 6, 6, generator=generator) * 3 * radius
    ball = geometry_of(norm)
    moved = ball.move(x, delta, radius, (0.0, 1.0))
    assert moved.dtype == torch.float32
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert (ball.size((moved - x).double()) <= radius).all()


def test_move_without_bounds_reaches_the_linf_boundary():
    x = torch.rand(2, 1, 8, 8)
    moved = geometry_of("linf").move(x, torch.ones_like(x), 8 / 255, None)
    torch.testing.assert_close(moved - x, torch.full_like(x, 8 / 255), atol=2e-7, rtol=0)
    assert moved.max() > 1


def test_an_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="must be one of linf, l2, l1, got 'l3'"):
        geometry_of("l3")
