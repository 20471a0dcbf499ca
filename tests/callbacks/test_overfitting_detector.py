"""Measurements, rules and roll-back of the overfitting detector."""

import json
import math
import warnings
from pathlib import Path

import pytest
import torch
from helpers.cli_runs import status, write_experiment
from helpers.ddp_worker import run_all
from helpers.forked_ranks import Ranks
from helpers.overfitting_fakes import FOUND_AT
from helpers.resume_helpers import differences, last, rows
from torch import nn

from lightning_paf.attacks import FGSM
from lightning_paf.callbacks.overfitting_detector import Measurement, OverfittingDetector, _counts


class Waves(nn.Module):
    """A margin with period eps along the brightness.

    A step of eps does not change it; smaller steps find the minimum.
    """

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x):
        margin = 0.5 + torch.cos(2 * math.pi * x.mean((1, 2, 3)) / self.eps)
        return torch.stack([margin, torch.zeros_like(margin)], 1)


BEST = Measurement(0.9, 0.5, 0.45, 0.8)


@pytest.mark.parametrize(
    ("found", "best", "overfits"),
    [
        (Measurement(0.9, 0.7, 0.45, 0.8), None, True),  # FGSM accuracy 25 points above PGD accuracy
        (Measurement(0.9, 0.6, 0.45, 0.8), None, False),  # 15 points
        (Measurement(0.9, 0.25, 0.2, 0.3), BEST, True),  # fell by more than half, the cosine too
        (Measurement(0.9, 0.25, 0.2, 0.9), BEST, False),  # the cosine rose
        (Measurement(0.9, 0.35, 0.3, 0.3), BEST, False),  # fell by a third
        (Measurement(0.9, 0.25, 0.2, 0.3), None, False),  # no earlier measurement
    ],
)
def test_the_rules(found, best, overfits):
    assert found.overfits(best, gap=0.2, fall=0.5) == overfits


def test_a_network_that_is_robust_to_single_steps_only_is_found():
    eps = 0.1
    x = 0.5 + 0.01 + torch.zeros(64, 1, 4, 4)  # close to a maximum
    clean, fgsm, pgd, cosines, known, n = _counts(Waves(eps), x, torch.zeros(64).long(), FGSM(eps), eps).tolist()
    assert clean == fgsm == n == 64
    assert pgd < 32
    assert Measurement(clean / n, fgsm / n, pgd / n, cosines / known).overfits(None, 0.2, 0.5)


def test_a_linear_network_has_the_same_gradient_everywhere():
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), torch.rand(8, 1, 4, 4), torch.arange(8) % 2
    clean, fgsm, pgd, cosines, known, n = _counts(model, x, y, FGSM(0.1), 0.1).tolist()
    assert cosines / known == pytest.approx(1, abs=1e-5)
    assert fgsm == pgd
    assert clean == (model(x).argmax(1) == y).sum()
    assert n == known == 8


def detector(**options) -> str:
    settings = {"every_n_steps": 2, "max_examples": 8} | options
    return json.dumps({"class_path": "helpers.overfitting_fakes.Scripted", "init_args": settings})


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> list[str]:
    options = ["--trainer.max_epochs", "3", "--averaging", "WarmupEMA", "--data.augment", "CropFlip"]
    return ["fit", "-c", write_experiment(tmp_path_factory.mktemp("tiny")), *options]


def fit(base, run: Path, *options: str) -> list[str]:
    """Train, and return the warnings of the detector."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert status(*base, *options, "--run", run) == 0
    return [str(warning.message) for warning in caught if "Catastrophic" in str(warning.message)]


def detecting(**options) -> str:
    return f'--trainer.callbacks=[{detector(**options)}, {{"class_path": "helpers.resume_helpers.Saver"}}]'


@pytest.fixture(scope="module")
def runs(base, tmp_path_factory) -> dict[str, tuple[Path, list[str]]]:
    """One run per action, with a checkpoint of every step, and the warnings."""
    folder = tmp_path_factory.mktemp("runs")
    actions = ("warn", "stop", "roll_back")
    return {action: (folder / action, fit(base, folder / action, detecting(action=action))) for action in actions}


def saved(run: Path, step: int) -> dict:
    return torch.load(run / "saved" / f"step{step}.ckpt", weights_only=True)


def weights(checkpoint: dict) -> list:
    optimizer = checkpoint["optimizer_states"][0]["state"]
    return [checkpoint[key] for key in ("state_dict", "current_model_state", "averaging_state")] + [optimizer]


def test_a_measurement_does_not_change_the_training(base, runs, tmp_path):
    assert fit(base, tmp_path) == []
    assert differences(weights(last(runs["warn"][0])), weights(last(tmp_path))) == []


def test_a_detection_is_logged_and_warned_of_in_one_line(runs):
    run, (line,) = runs["warn"]
    assert line.startswith("Catastrophic overfitting at step 6 (epoch 2): accuracy 90.0% under FGSM, 5.0% under PGD-10")
    assert "\n" not in line
    found = {int(row["step"]): float(row["overfitting/found"]) for row in rows(run) if "overfitting/found" in row}
    assert found == {2: 0, 4: 0, 6: 1, 8: 0, 10: 0, 12: 0}


@pytest.mark.parametrize("action", ["stop", "roll_back"])
def test_weights_average_and_optimiser_are_restored(runs, action):
    run, (line,) = runs[action]
    assert "Weights and optimiser are back at step 4." in line
    after, before = saved(run, FOUND_AT), saved(run, 4)
    assert differences(weights(after), weights(before)) == []
    assert differences(weights(saved(run, 5)), weights(before)) != []
    rates = [checkpoint["lr_schedulers"][0]["base_lrs"] for checkpoint in (before, after)]
    if action == "stop":
        assert last(run)["global_step"] == FOUND_AT
        assert differences(weights(last(run)), weights(before)) == []
        assert rates[0] == rates[1]
    else:
        assert last(run)["global_step"] == 12
        assert rates[1] == [rate / 2 for rate in rates[0]]
        assert differences(weights(saved(run, 8)), weights(after)) != []


def test_the_learning_rate_stays_lower_and_keeps_its_schedule(runs):
    rates = [
        [saved(runs[action][0], step)["optimizer_states"][0]["param_groups"][0]["lr"] for step in (5, 6, 7, 11)]
        for action in ("roll_back", "warn")
    ]
    assert [lower / full for lower, full in zip(*rates, strict=True)] == pytest.approx([1, 0.5, 0.5, 0.5])


@pytest.mark.parametrize("step", [5, 6])
def test_a_training_resumed_before_or_after_a_roll_back_is_the_same(base, runs, tmp_path, step):
    run = runs["roll_back"][0]
    fit(base, tmp_path, detecting(action="roll_back"), "--ckpt_path", str(run / "saved" / f"step{step}.ckpt"))
    assert differences(last(tmp_path), last(run)) == []


def test_a_stopped_training_is_not_resumed(base, runs, tmp_path):
    checkpoint = runs["stop"][0] / "checkpoints" / "last.ckpt"
    fit(base, tmp_path, detecting(action="stop"), "--ckpt_path", str(checkpoint))
    assert not (tmp_path / "saved").exists()


def test_every_epoch_is_measured_by_default(base, tmp_path):
    fit(base, tmp_path, detecting(action="stop", every_n_steps=None, found_at=8))
    assert last(tmp_path)["global_step"] == 8
    assert differences(weights(last(tmp_path)), weights(saved(tmp_path, 4))) == []
    logged = [float(row["overfitting/acc_pgd"]) for row in rows(tmp_path) if "overfitting/acc_pgd" in row]
    assert logged == pytest.approx([0.45, 0.05])


@pytest.mark.slow
def test_two_processes_decide_the_same(base, tmp_path):
    """Each process measures a part of the images; both restore the same weights."""
    both = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--averaging", "null", "--trainer.max_epochs", "2"]
    scripted = detector(action="roll_back", found_at=4)
    callbacks = f'--trainer.callbacks=[{scripted}, {{"class_path": "helpers.ddp_worker.Recorder"}}]'
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
        ({"action": "hope"}, "action must be warn, stop or roll_back, got 'hope'"),
        ({"every_n_steps": 0}, "every_n_steps must be at least 1"),
        ({"max_examples": 0}, "max_examples must be at least 1"),
        ({"gap": 0}, r"gap must be in \(0, 1\), got 0"),
        ({"fall": 20}, r"fall must be in \(0, 1\), got 20"),
        ({"lr_factor": 1}, r"lr_factor must be in \(0, 1\), got 1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        OverfittingDetector(**options)


def test_a_training_without_held_out_images_is_refused(base, tmp_path, capfd):
    assert status(*base, detecting(), "--data.val_size", "0", "--run", tmp_path) != 0
    assert "--data.val_size" in capfd.readouterr().err
