import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_paf.schedules import Constant, Cosine, Cyclic, OneCycle, Piecewise, Plateau, Ramp, Switch


@given(st.floats(0, 1))
def test_cosine_is_between_its_ends_and_symmetric(progress):
    schedule = Cosine(final=0.01)
    assert 0.01 <= schedule(progress) <= 1
    assert math.isclose(schedule(progress) + schedule(1 - progress), 1.01, abs_tol=1e-9)


def test_cosine_equals_torch():
    steps, parameter = 50, torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=0.001)
    for step in range(steps):
        assert math.isclose(0.1 * Cosine(final=0.01)(step / steps), optimizer.param_groups[0]["lr"], abs_tol=1e-9)
        optimizer.step()
        reference.step()


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        (Cosine(warmup=0.2, warmup_start=0.5), {0: 0.5, 0.1: 0.75, 0.2: 1, 1: 0}),
        (Piecewise([0.5, 0.75], gamma=0.1), {0: 1, 0.49: 1, 0.5: 0.1, 0.75: 0.01, 1: 0.01}),
        (Cyclic(0.4), {0: 0, 0.2: 0.5, 0.4: 1, 0.7: 0.5, 1: 0}),
        (Ramp(0.2, 0.5), {0: 0.2, 0.25: 0.6, 0.5: 1, 1: 1}),
        (Switch(0.6), {0: 0, 0.59: 0, 0.6: 1, 1: 1}),
    ],
)
def test_schedules_have_known_factors(schedule, factors):
    assert [schedule(progress) for progress in factors] == pytest.approx(list(factors.values()))


@given(st.floats(-5, 5))
def test_progress_is_clipped_to_the_training(progress):
    assert Constant()(progress) == 1
    assert 0 <= Cosine()(progress) <= 1


PLATEAUS = [({"gamma": 1}, "gamma must be"), ({"patience": -1}, "patience must be"), ({"mode": "up"}, "mode must be")]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cosine(warmup=1), r"warmup must be a fraction of the training in \[0, 1\), got 1. Pass e.g. 0.025"),
        (lambda: Cosine(warmup_start=2), r"warmup_start must be a factor in \[0, 1\], got 2"),
        (lambda: Piecewise([0.7, 0.5]), r"drops must be increasing fractions .*, got \[0.7, 0.5\]"),
        (lambda: Cyclic(0), r"peak must be a fraction of the training in \(0, 1\), got 0"),
        (lambda: Cyclic(low_momentum=1), r"low_momentum must be in \[0, 1\), got 1. Pass e.g. 0.85"),
        *((lambda options=options: Plateau("val/acc", **options), message) for options, message in PLATEAUS),
        (lambda: Ramp(start=2), r"start must be a factor in \[0, 1\], got 2"),
        (lambda: Ramp(end=0), r"end must be a fraction of the training in \(0, 1\], got 0"),
        *((lambda at=at: Switch(at), f"at must be .*, got {at}") for at in (0.0, 1.0, -1.0, math.nan)),
    ],
)
def test_invalid_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_factors_are_checked_over_the_whole_training():
    for schedule in (Constant(), Cosine(), Cyclic(), OneCycle(), Piecewise(), Ramp(), Switch()):
        schedule.check_fraction("eps")
    with pytest.raises(ValueError, match=r"eps must be scaled by a factor in \[0, 1\], got Cosine from 1 to 2"):
        Cosine(final=2.0).check_fraction("eps")
    with pytest.raises(ValueError, match=r"The schedule must depend on progress here, got Plateau. Pass e.g. Cosine"):
        Plateau("val/acc").check_fraction("eps")


def torch_values(scheduler: str, steps: int, **options) -> list[tuple[float, float]]:
    """Learning rate and momentum at each step of a scheduler of PyTorch."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2, momentum=0.9)
    reference = getattr(torch.optim.lr_scheduler, scheduler)(optimizer, **options)
    found = []
    for _ in range(steps):
        found.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
        optimizer.step()
        reference.step()
    return found


@pytest.mark.parametrize(
    ("schedule", "largest", "expected"),
    [
        # OneCycleLR counts from step 0 to total_steps - 1, and reaches the peak one step earlier.
        (OneCycle(0.25, 0.85), 0.95, ("OneCycleLR", {"max_lr": 0.2, "total_steps": 41, "pct_start": 11 / 41})),
        (OneCycle(0.025, 0.85), 0.95, ("OneCycleLR", {"max_lr": 0.2, "total_steps": 41, "pct_start": 2 / 41})),
        (Cyclic(0.5, 0.8), 0.9, ("CyclicLR", {"base_lr": 0, "max_lr": 0.2, "step_size_up": 20, "step_size_down": 20})),
        (Cyclic(0.4, 0.8), 0.9, ("CyclicLR", {"base_lr": 0, "max_lr": 0.2, "step_size_up": 16, "step_size_down": 24})),
    ],
)
def test_cycles_of_learning_rate_and_momentum_equal_torch(schedule, largest, expected):
    found = [(0.2 * schedule(step / 40), schedule.momentum(step / 40, largest)) for step in range(40)]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(torch_values(expected[0], 40, **expected[1])))


@pytest.mark.parametrize("schedule", [Cosine(), Cyclic(), OneCycle()])
def test_the_momentum_is_constant_by_default(schedule):
    assert {schedule.momentum(step / 10, 0.9) for step in range(11)} == {0.9}


@pytest.mark.parametrize("schedule", [Cyclic(0.5, 0.8), OneCycle(0.25, 0.85), OneCycle(), Cosine()])
@pytest.mark.parametrize("position", [0, 3, 10, 39])
def test_a_resumed_schedule_has_learning_rate_and_momentum_of_its_position(schedule, position):
    """The options of the configuration, here half the rate, replace those of the checkpoint at its position."""

    def scheduled(lr: float, momentum: float):
        weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
        groups = [{"params": [weight], "weight_decay": 0.1 * i} for i, weight in enumerate(weights)]
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum)
        return optimizer, schedule.scheduler(optimizer, 40)["scheduler"]

    def values(optimizer: torch.optim.Optimizer, rate: float = 1.0) -> list[float]:
        groups = optimizer.param_groups
        return [v for group in groups for v in (rate * group["lr"], group["momentum"], group["weight_decay"])]

    (first, before), (second, after) = scheduled(0.2, 0.9), scheduled(0.1, 0.9)
    for _ in range(position):
        first.step()
        before.step()
    second.load_state_dict(first.state_dict())
    after.load_state_dict(before.state_dict())
    for _ in range(2):
        assert values(second) == pytest.approx(values(first, 0.5))
        for optimizer, scheduler in ((first, before), (second, after)):
            optimizer.step()
            scheduler.step()


def test_a_resume_keeps_what_an_optimizer_counts_in_its_groups():
    """Optimisers of other packages, such as Prodigy, estimate the rate in their groups."""

    class Counting(torch.optim.SGD):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.param_groups[0]["estimate"] = 0.0

    def scheduled(decay: float):
        optimizer = Counting([torch.nn.Parameter(torch.zeros(1))], lr=0.2, weight_decay=decay)
        return optimizer, Cosine().scheduler(optimizer, 40)["scheduler"]

    (first, before), (second, after) = scheduled(0.1), scheduled(0.2)
    first.param_groups[0]["estimate"] = 0.7
    second.load_state_dict(first.state_dict())
    after.load_state_dict(before.state_dict())
    assert second.param_groups[0]["estimate"] == 0.7
    assert second.param_groups[0]["weight_decay"] == 0.2
