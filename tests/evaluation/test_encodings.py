from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lightning_paf.evaluation.evidence.encodings import ENCODINGS, Ball, encode_smallest, in_box

SIGNS, FLOAT16, FLOAT32 = ENCODINGS
EPS = Fraction(8, 255)
SHAPE = (3, 1, 2, 5)
PIXELS = arrays.arrays(
    np.float32, SHAPE, elements=st.one_of(st.sampled_from([0.0, 1.0, 1e-30, 0.5]), st.floats(0, 1, width=32))
)
STEPS = arrays.arrays(np.float32, SHAPE, elements=st.one_of(st.sampled_from([-1, 0, 1]), st.floats(-1, 1, width=32)))
few = settings(max_examples=60, deadline=None)


def exact(values):
    return [Fraction(float(value)) for value in values.ravel()]


def distances(x, x_adv):
    return [abs(a - b) for a, b in zip(exact(x), exact(x_adv), strict=True)]


def within(x, steps, eps):
    """Images inside the pixel range, at most about eps away."""
    return np.clip(x + np.float32(eps) * steps, 0, 1)


@few
@given(PIXELS, STEPS, st.sampled_from([EPS, Fraction(1, 10), Fraction(1), Fraction(1, 10**9)]))
def test_signs_stay_in_box_and_ball_without_any_rounding_error(x, steps, eps):
    decoded = SIGNS.decode(x, SIGNS.encode(x, within(x, steps, eps)), eps)
    assert decoded.dtype == np.float32
    assert in_box(decoded).all()
    assert max(distances(x, decoded)) <= eps


@few
@given(PIXELS, STEPS, st.sampled_from([EPS, Fraction(1)]))
def test_signs_move_every_changed_pixel_as_far_as_it_goes(x, steps, eps):
    x_adv = within(x, steps, eps)
    decoded = SIGNS.decode(x, SIGNS.encode(x, x_adv), eps)
    ideal = np.clip(x + np.sign(x_adv.astype(np.float64) - x) * float(eps), 0, 1)
    np.testing.assert_allclose(decoded, ideal, rtol=0, atol=2**-23)
    np.testing.assert_array_equal(decoded[x_adv == x], x[x_adv == x])


@few
@given(PIXELS, STEPS, st.sampled_from([EPS, Fraction(1, 10**6)]))
def test_half_precision_moves_no_pixel_further(x, steps, eps):
    x_adv = within(x, steps, eps)
    decoded = FLOAT16.decode(x, FLOAT16.encode(x, x_adv), eps)
    assert in_box(decoded).all()
    for coded, original in zip(distances(x, decoded), distances(x, x_adv), strict=True):
        assert coded <= original * (1 + Fraction(1, 2**50))  # the difference itself is rounded to double precision


@few
@given(PIXELS, STEPS)
def test_half_precision_is_close(x, steps):
    x_adv = within(x, steps, EPS)
    decoded = FLOAT16.decode(x, FLOAT16.encode(x, x_adv), EPS)
    np.testing.assert_allclose(decoded, x_adv, rtol=0, atol=float(EPS) * 2**-10 + 2**-23)


@few
@given(PIXELS, PIXELS)
def test_single_precision_gives_back_every_bit(x, x_adv):
    assert FLOAT32.decode(x, FLOAT32.encode(x, x_adv), EPS).tobytes() == x_adv.tobytes()


def test_decoding_is_this_arithmetic():
    """Computed once with exact fractions: eps is rounded down to 0x1.0101p-5, sums that are further away go back."""
    x = np.array([0.5, 0.25, 0.01, 0.995, 0.7], np.float32).reshape(1, 1, 1, 5)
    rows = np.array([[[0b11111000], [0b01000000]]], np.uint8)
    found = [value.hex() for value in SIGNS.decode(x, rows, EPS).ravel().tolist()]
    assert found == [
        "0x1.1010100000000p-1",
        "0x1.bfbfc00000000p-3",
        "0x1.52ec840000000p-5",
        "0x1.0000000000000p+0",
        "0x1.7676760000000p-1",
    ]


def test_sizes_are_those_that_are_promised():
    image = (3, 32, 32)
    sizes = [int(np.prod(kind.row(image))) * np.dtype(kind.dtype).itemsize for kind in ENCODINGS]
    assert sizes == [768, 6144, 12288]


@pytest.mark.parametrize(
    ("kind", "rows", "said"),
    [
        (SIGNS, np.array([[[0b11111100], [0]]], np.uint8), "beyond the last pixel"),
        (SIGNS, np.array([[[0b10000000], [0b01000000]]], np.uint8), "nothing is changed"),
        (SIGNS, np.array([[[0b11000000], [0b01000000]]], np.uint8), None),
        (FLOAT16, np.array([[[[0, np.nan, 0, 0, 0]]]], np.float16), "not finite"),
        (FLOAT32, np.array([[[[0, np.inf, 0, 0, 0]]]], np.float32), "not finite"),
        (FLOAT32, np.array([[[[0, 0.5, 0, 0, 0]]]], np.float32), None),
    ],
)
def test_what_is_never_written_is_found(kind, rows, said):
    fault = kind.fault(rows, (1, 1, 5))
    assert fault is None if said is None else said in fault


def test_the_ball_allows_half_a_unit_in_the_last_place():
    x, one = np.zeros((1, 1, 1, 1), np.float32), np.full((1, 1, 1, 1), 0.5, np.float32)
    assert Ball("linf", Fraction(1, 2)).size(x, one) <= Ball("linf", Fraction(1, 2)).limit
    assert Ball("linf", Fraction(1, 2) - Fraction(1, 2**25)).limit >= 0.5
    assert Ball("linf", Fraction(1, 2) - Fraction(1, 2**23)).limit < 0.5
    assert Ball("l2", Fraction(1)).limit == 1 + 1e-6


@pytest.mark.parametrize(("norm", "size"), [("linf", 0.4), ("l2", 0.5), ("l1", 0.7)])
def test_sizes_are_norms(norm, size):
    x = np.full((1, 1, 1, 2), 0.5, np.float32)
    x_adv = x + np.array([0.3, -0.4], np.float32)
    assert Ball(norm, EPS).size(x, x_adv)[0] == pytest.approx(size, rel=1e-6)


class Near:
    """Fooled by images within reach of given ones; the gap depends on the distance."""

    def __init__(self, x_adv, reach, gap):
        self.x_adv, self.reach, self.gap, self.calls = x_adv, reach, gap, 0

    def __call__(self, decoded, places):
        self.calls += 1
        away = np.abs(decoded - self.x_adv[places]).reshape(len(places), -1).max(axis=1)
        fooled = away <= self.reach[places]
        return fooled.astype(np.int64), np.where(fooled, self.gap(away), -1.0)


def four(norm="linf"):
    """Clean images of label 0, and adversarial ones that need the three encodings; the last needs a miracle."""
    x = np.full((4, 1, 2, 3), 0.3, np.float32)
    x_adv = x + np.float32(0.4 * float(EPS))
    return x, x_adv, np.zeros(4, np.int64), Ball(norm, EPS if norm == "linf" else Fraction(1, 10))


def test_the_smallest_encoding_that_fools_is_taken():
    x, x_adv, labels, ball = four()
    judge = Near(x_adv, np.array([0.1, 1e-4, 0.0, -1.0]), lambda away: np.ones_like(away))
    found = encode_smallest(x, x_adv, labels, ball, judge)
    assert found.codes.tolist() == [1, 2, 3, 0]
    assert found.predictions.tolist() == [1, 1, 1, -1]
    assert found.rows[3] is None
    np.testing.assert_array_equal(found.rows[2], x_adv[2])


def test_signs_are_for_linf_only():
    x, x_adv, labels, ball = four("l2")
    judge = Near(x_adv, np.array([0.1, 1e-4, 0.0, -1.0]), lambda away: np.ones_like(away))
    assert encode_smallest(x, x_adv, labels, ball, judge).codes.tolist() == [2, 2, 3, 0]


def test_a_clear_success_is_preferred_to_a_small_encoding():
    x, x_adv, labels, ball = four()
    judge = Near(x_adv, np.full(4, 0.1), lambda away: np.where(away > 1e-3, 1e-6, 1.0))
    assert encode_smallest(x, x_adv, labels, ball, judge).codes.tolist() == [2, 2, 2, 2]
    judge = Near(x_adv, np.full(4, 0.1), lambda away: np.full_like(away, 1e-6))  # none is clear
    assert encode_smallest(x, x_adv, labels, ball, judge).codes.tolist() == [1, 1, 1, 1]


def test_what_leaves_box_or_ball_is_no_proof():
    x, _, labels, ball = four()
    x_adv = np.clip(x + np.float32(1.01 * float(EPS)), 0, 1)
    x_adv[0] = -0.01
    exactly = Near(x_adv, np.zeros(4), lambda away: np.ones_like(away))
    assert encode_smallest(x, x_adv, labels, ball, exactly).codes.tolist() == [0, 0, 0, 0]
    x[0] = 0.0
    wide = Ball("linf", Fraction(1))
    assert encode_smallest(x, x_adv, labels, wide, exactly).codes.tolist() == [0, 3, 3, 3]


def test_nothing_is_judged_twice_without_need():
    x, x_adv, labels, ball = four()
    judge = Near(x_adv, np.full(4, 0.1), lambda away: np.ones_like(away))
    encode_smallest(x, x_adv, labels, ball, judge)
    assert judge.calls == 1
