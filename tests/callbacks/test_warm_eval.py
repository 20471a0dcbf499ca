import pytest
import torch
from test_robust_eval import EPS, EXPECTED, Module, data, trainer

from lightning_paf.attacks import APGD, PGD
from lightning_paf.callbacks import WarmEval
from lightning_paf.evaluation import Verdict
from lightning_paf.evaluation.sequential import StopRule


class AfterFour(StopRule):
    reason = "four are enough"

    def __call__(self, robust, judged, total):
        return judged >= 4


def fitted(tmp_path, epochs: int = 3, **options) -> tuple[WarmEval, dict[str, float]]:
    check = WarmEval(APGD(EPS, steps=10), warm_steps=3, batch_size=4, **options)
    run = trainer(tmp_path, check, max_epochs=epochs)
    run.fit(Module(), data(), data())
    return check, {name: float(value) for name, value in run.callback_metrics.items()}


def test_the_bound_is_the_robust_accuracy_and_costs_less_than_at_first(tmp_path):
    check, metrics = fitted(tmp_path)
    assert check.results["val"].verdicts.tolist() == EXPECTED.tolist()
    robust = int((EXPECTED == Verdict.ROBUST).sum()) / len(EXPECTED)
    assert metrics["val/aa_upper"] == metrics["val/acc_warm"] == pytest.approx(robust)
    assert metrics["val/aa_upper_low"] == metrics["val/aa_upper_high"] == pytest.approx(robust), "all were judged"
    assert 0 < metrics["val/aa_passes"] < metrics["val/aa_passes_cold"]


def test_a_check_stops_early_with_an_interval(tmp_path):
    check, metrics = fitted(tmp_path, epochs=1, val_stop=AfterFour())
    assert check.results["val"].judged == 4
    assert metrics["val/aa_upper_low"] < metrics["val/aa_upper"] < metrics["val/aa_upper_high"]


def test_its_memory_is_in_the_checkpoint():
    check = WarmEval(APGD(EPS, steps=10))
    check.warm.nearest = {3: torch.ones(1, 4, 4).half()}
    other = WarmEval(APGD(EPS, steps=10))
    other.load_state_dict(check.state_dict())
    assert torch.equal(other.warm.nearest[3], check.warm.nearest[3])


def test_attacks_without_starts_are_refused():
    with pytest.raises(ValueError, match="only APGD can"):
        WarmEval(PGD(EPS))
