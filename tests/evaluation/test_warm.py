"""A warm check has the result of a cold one, at a lower cost."""

import numpy as np
import pytest
import torch
from helpers.fakes import TinyNet
from torch import Tensor, nn

from lightning_paf.attacks import APGD, PGD, AutoAttack
from lightning_paf.evaluation import Outcome, Samples
from lightning_paf.evaluation.warm import WarmCheck

EPS = 0.057  # no sample is within rounding error of EPS


class Threshold(nn.Module):
    """Class 1 where the mean pixel is above a level: fooled under linf eps exactly within eps of it."""

    def __init__(self, level: float = 0.5) -> None:
        super().__init__()
        self.level = level

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2, 3)) - self.level
        return torch.stack([-mean, mean], 1) * 10


def samples() -> tuple[Tensor, Tensor]:
    levels = torch.linspace(0.1, 0.9, 41)
    return levels.view(-1, 1, 1, 1).expand(-1, 1, 4, 4).clone(), (levels > 0.5).long()


def expected_outcomes(model: Threshold, x: Tensor, y: Tensor) -> list[int]:
    level = x.mean((1, 2, 3))
    outcomes = torch.where((level - model.level).abs() < EPS, Outcome.FOOLED, Outcome.ROBUST)
    outcomes[(level > model.level).long() != y] = Outcome.MISCLASSIFIED
    return outcomes.tolist()


def outcomes(result, n: int) -> list[int]:
    found = np.zeros(n, np.uint8)
    found[result.ids] = result.outcomes
    return found.tolist()


def test_a_warm_check_has_the_known_outcomes_of_a_changing_network():
    x, y = samples()
    check = WarmCheck(APGD(EPS, steps=20), steps=5, block_size=21)
    for number, level in enumerate((0.5, 0.505, 0.52)):
        model = Threshold(level)
        result = check.run(model, Samples.of(x, y))
        assert outcomes(result, len(y)) == expected_outcomes(model, x, y)
        assert result.cold == (number == 0)


def test_attacks_that_need_more_classes_are_left_out():
    x, y = samples()
    attack = AutoAttack(EPS, version="custom", attacks=["apgd-ce", "apgd-t"])
    with pytest.warns(UserWarning, match="leaves out apgd-t"):
        result = WarmCheck(attack).run(Threshold(), Samples.of(x, y))
    assert outcomes(result, len(y)) == expected_outcomes(Threshold(), x, y)


def test_images_that_fooled_the_last_network_are_replayed_and_save_passes():
    x, y = samples()
    check = WarmCheck(APGD(EPS, steps=20), steps=5)
    cold, warm = (check.run(Threshold(), Samples.of(x, y)) for _ in range(2))
    assert cold.replayed == 0
    assert warm.replayed == int((cold.outcomes == Outcome.FOOLED).sum()) > 0
    assert warm.passes < 0.5 * cold.passes


def test_a_stop_rule_ends_a_check_after_a_block():
    x, y = samples()
    calls = []

    def stop(robust: int, evaluated: int, total: int) -> bool:
        calls.append((robust, evaluated, total))
        return evaluated >= 14

    result = WarmCheck(APGD(EPS, steps=5), block_size=7).run(Threshold(), Samples.of(x, y), stop)
    assert [evaluated for _, evaluated, _ in calls] == [7, 14]
    assert len(result.ids) == 14
    assert calls[-1][0] == result.robust


def test_the_perturbations_are_restored_from_a_checkpoint():
    x, y = samples()
    first = WarmCheck(APGD(EPS, steps=20), steps=5)
    first.run(Threshold(), Samples.of(x, y))
    second = WarmCheck(APGD(EPS, steps=20), steps=5)
    second.load_state_dict(first.state_dict())
    a, b = (check.run(Threshold(0.505), Samples.of(x, y)) for check in (first, second))
    assert not b.cold
    assert (a.passes, a.replayed) == (b.passes, b.replayed)


def test_the_model_is_unchanged():
    torch.manual_seed(0)
    model = TinyNet().train()
    x = torch.rand(12, 3, 8, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    WarmCheck(APGD(EPS, steps=3)).run(model, Samples.of(x, torch.arange(12) % 10))
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("attack", "steps", "message"),
    [(PGD(EPS), 5, "only APGD does"), (AutoAttack(EPS), 5, "only APGD does"), (APGD(EPS), 0, "at least 1, got 0")],
)
def test_attacks_without_starts_and_zero_steps_are_refused(attack, steps, message):
    with pytest.raises(ValueError, match=message):
        WarmCheck(attack, steps=steps)
