"""A training that is told to stop saves, exits with a status of its own, and goes on as if nothing had happened."""

import signal
from pathlib import Path

import pytest
import torch
from cli_runs import status, write_experiment
from interrupted import differences, last, rows

from lightning_paf.callbacks.stop_on_signal import EXIT_STATUS


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> list[str]:
    options = ["--averaging", "WarmupEMA", "--data.eval_batch_size", "5", "--trainer.max_epochs", "2"]
    return ["fit", "-c", write_experiment(tmp_path_factory.mktemp("tiny")), *options]


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("whole")
    assert status(*base, "--run", run) == 0
    return run


@pytest.mark.parametrize(
    ("number", "step", "validating", "saved"),
    [("SIGTERM", 2, False, 3), ("SIGUSR1", 3, False, 4), ("SIGTERM", 4, True, 4)],
)
def test_it_stops_after_the_batch_and_goes_on(number, step, validating, saved, base, whole, tmp_path):
    before = signal.getsignal(signal.Signals[number])
    told = ["--trainer.callbacks+=interrupted.SignalledAt", "--trainer.callbacks.step", step]
    told += ["--trainer.callbacks.signal", number, "--trainer.callbacks.validating", str(validating).lower()]
    assert status(*base, *told, "--run", tmp_path) == EXIT_STATUS == 75
    assert signal.getsignal(signal.Signals[number]) == before
    stopped = torch.load(tmp_path / "checkpoints" / "stopped.ckpt", weights_only=True)
    assert stopped["global_step"] == saved
    assert status(*base, "--ckpt_path", "auto", "--run", tmp_path) == 0
    assert differences(last(tmp_path), last(whole)) == []
    assert rows(tmp_path) == rows(whole)
