import json

import pytest
import torch
from callbacks.test_robust_eval import EPS, EXPECTED, Module, data, trainer
from helpers.cli_runs import write_experiment
from helpers.forked_ranks import Ranks
from helpers.resume_helpers import differences, last, rows

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


def fitted(tmp_path, epochs: int = 3, **options) -> tuple[WarmEval, dict[str, float]]:
    check = WarmEval(APGD(EPS, steps=10), warm_steps=3, batch_size=4, **options)
    run = trainer(tmp_path, check, max_epochs=epochs)
    run.fit(Module(), data(), data())
    return check, {name: float(value) for name, value in run.callback_metrics.items()}


def test_the_bound_is_the_robust_accuracy_and_costs_less_than_at_first(tmp_path):
    check, metrics = fitted(tmp_path)
    assert check.results["val"].outcomes.tolist() == EXPECTED.tolist()
    robust = int((EXPECTED == Outcome.ROBUST).sum()) / len(EXPECTED)
    assert metrics["val/aa_upper"] == metrics["val/acc_warm"] == pytest.approx(robust)
    assert metrics["val/aa_upper_low"] == metrics["val/aa_upper_high"] == pytest.approx(robust), "all were judged"
    assert 0 < metrics["val/aa_passes"] < metrics["val/aa_passes_cold"]


def test_a_check_stops_early_with_an_interval(tmp_path):
    check, metrics = fitted(tmp_path, epochs=1, val_stop=AfterFour())
    assert check.results["val"].evaluated == 4
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


def test_the_memory_of_several_ranks_is_one():
    parts = [{"ids": [4, 0], "perturbations": ["d", "a"]}, {"ids": [], "perturbations": []}]
    parts.append({"ids": [3, 1], "perturbations": ["c", "b"]})
    assert joined(parts) == {"ids": [0, 1, 3, 4], "perturbations": ["a", "b", "c", "d"]}


def train_and_resume(words: list[str], folder: str) -> None:
    """On each rank: a run with all checkpoints that it might have been stopped at, and a run from one of them."""
    train([*words, "--trainer.callbacks+=helpers.resume_helpers.Saver", "--run", f"{folder}/whole"])
    train([*words, "--ckpt_path", f"{folder}/whole/saved/step5.ckpt", "--run", f"{folder}/resumed"])


@pytest.mark.slow
def test_two_ranks_go_on_from_what_both_remember(tmp_path):
    check = {"class_path": "WarmEval", "init_args": {"warm_steps": 2, "batch_size": 4}}
    check["init_args"]["attack"] = {"class_path": "APGD", "init_args": {"eps": 0.05, "steps": 8}}
    words = ["fit", "-c", write_experiment(tmp_path), "--val_attack", json.dumps(check), "--trainer.max_epochs", "2"]
    words += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    ranks = Ranks(2, tmp_path / "logs", train_and_resume, words, str(tmp_path)).succeed()
    saved = torch.load(tmp_path / "whole" / "saved" / "step5.ckpt", weights_only=True)["callbacks"]
    (memory,) = [state["warm"] for name, state in saved.items() if "WarmEval" in name]
    assert memory["ids"] == list(range(12)), "of both ranks"
    assert differences(last(tmp_path / "resumed"), last(tmp_path / "whole")) == [], ranks
    resumed = [row for row in rows(tmp_path / "resumed") if "val/aa_passes" in row]
    assert resumed == [row for row in rows(tmp_path / "whole") if "val/aa_passes" in row][1:]
    assert float(resumed[0]["val/aa_passes"]) < float(resumed[0]["val/aa_passes_cold"])
