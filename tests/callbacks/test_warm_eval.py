"""Validation that starts from earlier adversarial images."""

import json

import pytest
import torch
from helpers.cli_runs import write_experiment
from helpers.forked_ranks import Ranks
from helpers.known_accuracy import EPS, EXPECTED, BrightnessModule, data
from helpers.resume_helpers import differences, last, rows
from helpers.trainers import trainer

from lightning_paf.attacks import APGD, PGD
from lightning_paf.callbacks import WarmEval
from lightning_paf.cli.training import train
from lightning_paf.evaluation import Outcome
from lightning_paf.evaluation.stopping import StopRule
from lightning_paf.evaluation.warm import joined


class AfterFour(StopRule):
    reason = "four are enough"

    def __call__(self, robust, evaluated, total):
        return evaluated >= 4


def fitted(folder, epochs: int = 3, **options) -> tuple[WarmEval, dict[str, float]]:
    callback = WarmEval(APGD(EPS, steps=10), warm_steps=3, batch_size=4, **options)
    run = trainer(folder, callback, max_epochs=epochs)
    run.fit(BrightnessModule(), data(), data())
    return callback, {name: float(value) for name, value in run.callback_metrics.items()}


def test_the_bound_is_the_robust_accuracy_and_later_validations_cost_less(tmp_path):
    callback, metrics = fitted(tmp_path)
    assert callback.results["val"].outcomes.tolist() == EXPECTED.tolist()
    robust = int((EXPECTED == Outcome.ROBUST).sum()) / len(EXPECTED)
    assert metrics["val/aa_upper"] == metrics["val/acc_warm"] == pytest.approx(robust)
    assert metrics["val/aa_upper_low"] == metrics["val/aa_upper_high"] == pytest.approx(robust), "all were evaluated"
    assert 0 < metrics["val/aa_passes"] < metrics["val/aa_passes_cold"]


def test_a_validation_stops_early_with_an_interval(tmp_path):
    callback, metrics = fitted(tmp_path, epochs=1, val_stop=AfterFour())
    assert callback.results["val"].evaluated == 4
    assert metrics["val/aa_upper_low"] < metrics["val/aa_upper"] < metrics["val/aa_upper_high"]


def test_perturbations_are_in_the_checkpoint():
    callback, other = (WarmEval(APGD(EPS, steps=10)) for _ in range(2))
    callback.warm.nearest = {3: torch.ones(1, 4, 4).half()}
    other.load_state_dict(callback.state_dict())
    assert torch.equal(other.warm.nearest[3], callback.warm.nearest[3])


def test_attacks_without_starting_points_are_refused():
    with pytest.raises(ValueError, match="only APGD does"):
        WarmEval(PGD(EPS))


def test_the_states_of_several_ranks_are_joined():
    parts = [{"ids": [4, 0], "perturbations": ["d", "a"]}, {"ids": [], "perturbations": []}]
    parts.append({"ids": [3, 1], "perturbations": ["c", "b"]})
    assert joined(parts) == {"ids": [0, 1, 3, 4], "perturbations": ["a", "b", "c", "d"]}


def train_and_resume(words: list[str], folder: str) -> None:
    """On each rank, train with a checkpoint of every step, and resume from one."""
    train([*words, "--trainer.callbacks+=helpers.resume_helpers.Saver", "--run", f"{folder}/uninterrupted"])
    train([*words, "--ckpt_path", f"{folder}/uninterrupted/saved/step5.ckpt", "--run", f"{folder}/resumed"])


@pytest.mark.slow
def test_two_ranks_resume_with_the_perturbations_of_both(tmp_path):
    options = {"warm_steps": 2, "batch_size": 4}
    options["attack"] = {"class_path": "APGD", "init_args": {"eps": 0.05, "steps": 8}}
    slot = json.dumps({"class_path": "WarmEval", "init_args": options})
    words = ["fit", "-c", write_experiment(tmp_path), "--val_attack", slot, "--trainer.max_epochs", "2"]
    words += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    ranks = Ranks(2, tmp_path / "logs", train_and_resume, words, str(tmp_path)).succeed()
    saved = torch.load(tmp_path / "uninterrupted" / "saved" / "step5.ckpt", weights_only=True)["callbacks"]
    (state,) = [state["warm"] for name, state in saved.items() if "WarmEval" in name]
    assert state["ids"] == list(range(12)), "of both ranks"
    assert differences(last(tmp_path / "resumed"), last(tmp_path / "uninterrupted")) == [], ranks
    resumed = [row for row in rows(tmp_path / "resumed") if "val/aa_passes" in row]
    assert resumed == [row for row in rows(tmp_path / "uninterrupted") if "val/aa_passes" in row][1:]
    assert float(resumed[0]["val/aa_passes"]) < float(resumed[0]["val/aa_passes_cold"])
