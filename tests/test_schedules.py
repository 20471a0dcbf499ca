import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_paf.schedules import Constant, Cosine, Cyclic, Piecewise, Ramp, Switch

PROGRESS = st.floats(0, 1)


@given(PROGRESS)
def test_cosine_is_between_its_ends_and_symmetric(progress):
    schedule = Cosine(final=0.01)
    assert 0.01 <= schedule(progress) <= 1
    assert math.isclose(schedule(progress) + schedule(1 - progress), 1.01, abs_tol=1e-9)


def test_cosine_equals_torch():
    import torch

    steps, parameter = 50, torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=0.001)
    for step in range(steps):
        assert math.isclose(0.1 * Cosine(final=0.01)(step / steps), optimizer.param_groups[0]["lr"], abs_tol=1e-9)
        optimizer.step()
        reference.step()


def test_warm_up_is_linear_and_then_the_schedule_begins():
    schedule = Cosine(warmup=0.2, warmup_start=0.5)
    assert schedule(0) == 0.5
    assert math.isclose(schedule(0.1), 0.75)
    assert math.isclose(schedule(0.2), 1)
    assert math.isclose(schedule(1), 0, abs_tol=1e-12)


def test_piecewise_drops():
    schedule = Piecewise([0.5, 0.75], gamma=0.1)
    assert [schedule(p) for p in (0, 0.49, 0.5, 0.75, 1)] == pytest.approx([1, 1, 0.1, 0.01, 0.01])


def test_cyclic_is_a_triangle():
    schedule = Cyclic(0.4)
    assert [schedule(p) for p in (0, 0.2, 0.4, 0.7, 1)] == pytest.approx([0, 0.5, 1, 0.5, 0])


@given(st.floats(-5, 5))
def test_progress_outside_the_training_is_clipped(progress):
    assert Constant()(progress) == 1
    assert 0 <= Cosine()(progress) <= 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cosine(warmup=1), "warmup=1"),
        (lambda: Cosine(warmup_start=2), "warmup_start=2"),
        (lambda: Piecewise([0.7, 0.5]), r"drops=\[0.7, 0.5\]"),
        (lambda: Cyclic(0), "peak=0"),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_ramp_is_a_straight_line_that_ends():
    assert [Ramp(0.2, 0.5)(p) for p in (0, 0.25, 0.5, 1)] == pytest.approx([0.2, 0.6, 1, 1])
    for options in ({"start": 2}, {"end": 0}):
        with pytest.raises(ValueError, match=r"Pass e.g. 0 and 1"):
            Ramp(**options)


def test_a_switch_is_nothing_and_then_all():
    schedule = Switch(0.6)
    assert [schedule(p) for p in (0, 0.59, 0.6, 1)] == [0, 0, 1, 1]


@pytest.mark.parametrize("at", [0.0, 1.0, -1.0, float("nan")])
def test_a_switch_outside_the_training_is_refused(at):
    with pytest.raises(ValueError, match="fraction of the training in \\(0, 1\\)"):
        Switch(at)


def test_shares_are_checked_over_the_whole_training():
    for schedule in (Constant(), Cosine(), Cyclic(), Piecewise(), Ramp(), Switch()):
        schedule.check_share("it")
    with pytest.raises(ValueError, match="it is scaled by a factor in \\[0, 1\\], but Cosine goes from -1 to 1"):
        Cosine(final=-1.0).check_share("it")
