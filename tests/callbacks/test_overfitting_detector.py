"""The detector of catastrophic overfitting: what it measures, when it speaks, and how it undoes."""

import json
import math
from pathlib import Path

import pytest
import torch
from helpers.cli_runs import status, write_experiment
from helpers.ddp_worker import run_all
from helpers.forked_ranks import Ranks
from helpers.overfitting_fakes import SIGN_AT
from helpers.resume_helpers import differences, last, rows
from torch import nn

from lightning_paf.attacks import FGSM
from lightning_paf.callbacks.overfitting_detector import Look, OverfittingDetector, _counts


class Waves(nn.Module):
    """A margin of period eps along the brightness: a step of eps changes nothing, smaller steps find the trough."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x):
        margin = 0.5 + torch.cos(2 * math.pi * x.mean((1, 2, 3)) / self.eps)
        return torch.stack([margin, torch.zeros_like(margin)], 1)


def test_the_rules():
    assert Look(0.9, 0.7, 0.45, 0.8).overfits(None, gap=0.2, fall=0.5), "FGSM 25 points above PGD"
    assert not Look(0.9, 0.6, 0.45, 0.8).overfits(None, gap=0.2, fall=0.5), "15 points above"
    best = Look(0.9, 0.5, 0.45, 0.8)
    assert Look(0.9, 0.25, 0.2, 0.3).overfits(best, gap=0.2, fall=0.5), "fell by more than half, cosine too"
    assert not Look(0.9, 0.25, 0.2, 0.9).overfits(best, gap=0.2, fall=0.5), "cosine rose"
    assert not Look(0.9, 0.35, 0.3, 0.3).overfits(best, gap=0.2, fall=0.5), "fell by a third"
    assert not Look(0.9, 0.25, 0.2, 0.3).overfits(None, gap=0.2, fall=0.5), "nothing to compare with"


def test_it_sees_a_network_that_withstands_single_steps_only():
    eps = 0.1
    x = 0.5 + 0.01 + torch.zeros(64, 1, 4, 4)  # just beside a crest
    clean, fgsm, pgd, cosines, known, n = _counts(Waves(eps), x, torch.zeros(64).long(), FGSM(eps), eps).tolist()
    assert clean == fgsm == n == 64
    assert pgd < 32
    assert Look(clean / n, fgsm / n, pgd / n, cosines / known).overfits(None, 0.2, 0.5)


def test_a_linear_network_has_the_same_gradient_everywhere():
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), torch.rand(8, 1, 4, 4), torch.arange(8) % 2
    clean, fgsm, pgd, cosines, known, n = _counts(model, x, y, FGSM(0.1), 0.1).tolist()
    assert cosines / known == pytest.approx(1, abs=1e-5)
    assert fgsm == pgd
    assert clean == (model(x).argmax(1) == y).sum()
    assert n == known == 8


def of_class(**options) -> str:
    settings = {"every_n_steps": 2, "max_examples": 8} | options
    return json.dumps({"class_path": "helpers.overfitting_fakes.Pretending", "init_args": settings})


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> list[str]:
    options = ["--trainer.max_epochs", "3", "--averaging", "WarmupEMA", "--data.augment", "CropFlip"]
    return ["fit", "-c", write_experiment(tmp_path_factory.mktemp("tiny")), *options]


def fit(base, run: Path, *options: str) -> Path:
    assert status(*base, *options, "--run", run) == 0
    return run


def watched(action: str, **options) -> list[str]:
    return [
        f'--trainer.callbacks=[{of_class(action=action, **options)}, {{"class_path": "helpers.resume_helpers.Saver"}}]'
    ]


def saved(run: Path, step: int) -> dict:
    return torch.load(run / "saved" / f"step{step}.ckpt", weights_only=True)


def weights(checkpoint: dict) -> list:
    optimizer = checkpoint["optimizer_states"][0]["state"]
    return [checkpoint[key] for key in ("state_dict", "current_model_state", "averaging_state")] + [optimizer]


@pytest.mark.filterwarnings("ignore:Catastrophic overfitting")
def test_looking_changes_nothing(base, tmp_path):
    with_it = fit(base, tmp_path / "with", *watched("warn"))
    without = fit(base, tmp_path / "without")
    assert differences(weights(last(with_it)), weights(last(without))) == []


def test_a_warning_is_one_line(base, tmp_path):
    with pytest.warns(UserWarning, match="Catastrophic overfitting") as caught:
        run = fit(base, tmp_path, *watched("warn"))
    (line,) = [str(w.message) for w in caught if "Catastrophic" in str(w.message)]
    assert line.startswith("Catastrophic overfitting at step 6 (epoch 2): accuracy 90.0% under FGSM, 5.0% under PGD-10")
    assert "\n" not in line
    found = {int(row["step"]): float(row["overfitting/found"]) for row in rows(run) if "overfitting/found" in row}
    assert found == {2: 0, 4: 0, 6: 1, 8: 0, 10: 0, 12: 0}


@pytest.mark.parametrize("action", ["stop", "roll_back"])
def test_weights_average_and_optimiser_return(base, tmp_path, action):
    with pytest.warns(UserWarning, match=r"Weights and optimiser are back at step 4\."):
        run = fit(base, tmp_path, *watched(action))
    at, before = saved(run, SIGN_AT), saved(run, 4)
    assert differences(weights(at), weights(before)) == []
    assert differences(weights(saved(run, 5)), weights(before)) != []
    rates = [checkpoint["lr_schedulers"][0]["base_lrs"] for checkpoint in (before, at)]
    if action == "stop":
        assert last(run)["global_step"] == SIGN_AT
        assert differences(weights(last(run)), weights(before)) == []
        assert rates[0] == rates[1]
    else:
        assert last(run)["global_step"] == 12
        assert rates[1] == [rate / 2 for rate in rates[0]]
        assert differences(weights(saved(run, 8)), weights(at)) != []


def learning_rate(checkpoint: dict) -> float:
    return checkpoint["optimizer_states"][0]["param_groups"][0]["lr"]


@pytest.mark.filterwarnings("ignore:Catastrophic overfitting")
def test_the_learning_rate_stays_lower_and_keeps_its_schedule(base, tmp_path):
    rolled, plain = fit(base, tmp_path / "a", *watched("roll_back")), fit(base, tmp_path / "b", *watched("warn"))
    ratios = [learning_rate(saved(rolled, step)) / learning_rate(saved(plain, step)) for step in (5, 6, 7, 11)]
    assert ratios == pytest.approx([1, 0.5, 0.5, 0.5])


@pytest.mark.filterwarnings("ignore:Catastrophic overfitting")
@pytest.mark.parametrize("step", [5, 6, 7])
def test_resumed_before_at_and_after_a_roll_back(base, tmp_path, step):
    whole = fit(base, tmp_path / "whole", *watched("roll_back"))
    words = ["--ckpt_path", str(whole / "saved" / f"step{step}.ckpt")]
    run = fit(base, tmp_path / "run", *watched("roll_back"), *words)
    assert differences(last(run), last(whole)) == []


@pytest.mark.filterwarnings("ignore:Catastrophic overfitting")
def test_a_training_that_was_stopped_is_not_taken_up_again(base, tmp_path):
    run = fit(base, tmp_path / "run", *watched("stop"))
    fit(base, tmp_path / "again", *watched("stop"), "--ckpt_path", str(run / "checkpoints" / "last.ckpt"))
    assert not (tmp_path / "again" / "saved").exists()


@pytest.mark.filterwarnings("ignore:Catastrophic overfitting")
def test_epochs_are_the_default(base, tmp_path):
    run = fit(base, tmp_path, *watched("stop", every_n_steps=None, sign_at=8))
    assert last(run)["global_step"] == 8
    assert differences(weights(last(run)), weights(saved(run, 4))) == []
    assert [float(row["overfitting/acc_pgd"]) for row in rows(run) if "overfitting/acc_pgd" in row] == [
        pytest.approx(0.45),
        pytest.approx(0.05),
    ]


@pytest.mark.slow
def test_two_processes_decide_alike(base, tmp_path):
    """Each looks at its own images; both return to the same weights."""
    both = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--averaging", "null"]
    detector = of_class(action="roll_back", sign_at=4)
    callbacks = f'--trainer.callbacks=[{detector}, {{"class_path": "helpers.ddp_worker.Recorder"}}]'
    words = [*base, *both, callbacks, "--run", str(tmp_path / "run")]
    ranks = Ranks(2, tmp_path / "logs", run_all, [(words, 0)], tmp_path / "saved").succeed()
    first, second = (torch.load(tmp_path / "run" / f"seen_rank{rank}.pt") for rank in (0, 1))
    assert differences(first["weights"], second["weights"]) == []
    assert differences(first["weights"][3], first["weights"][1]) == [], "the fourth step was undone"
    assert differences(first["weights"][4], first["weights"][1]) != []
    assert str(ranks).count("Catastrophic overfitting at step 4") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"action": "hope"}, "action must be warn, stop or roll_back, but is 'hope'"),
        ({"every_n_steps": 0}, "every_n_steps must be at least 1"),
        ({"max_examples": 0}, "max_examples must be at least 1"),
        ({"gap": 0}, r"gap is a share in \(0, 1\), but gap=0"),
        ({"fall": 20}, r"fall is a share in \(0, 1\), but fall=20"),
        ({"lr_factor": 1}, r"lr_factor is a share in \(0, 1\), but lr_factor=1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        OverfittingDetector(**options)


def test_no_image_held_out(base, tmp_path, capfd):
    assert status(*base, *watched("warn"), "--data.val_size", "0", "--run", tmp_path) != 0
    assert "--data.val_size" in capfd.readouterr().err
