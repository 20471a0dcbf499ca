"""A training that a signal stops saves a checkpoint, exits with its own status, and resumes exactly."""

import os
import signal
from pathlib import Path

import pytest
import torch
from helpers.cli_runs import status, write_experiment
from helpers.processes import started
from helpers.resume_helpers import differences, last, rows
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Trainer

from lightning_paf.callbacks import StopOnSignal
from lightning_paf.callbacks.stop_on_signal import EXIT_STATUS

SECONDS = 120  # far more than any of these takes


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
    [("SIGTERM", 2, False, 3), ("SIGUSR1", 3, False, 4), ("SIGINT", 4, True, 4), ("SIGHUP", 5, False, 6)],
)
def test_it_stops_after_the_batch_and_resumes(number, step, validating, saved, base, whole, tmp_path):
    before = signal.getsignal(signal.Signals[number])
    signalled = ["--trainer.callbacks+=helpers.resume_helpers.SignalledAt", "--trainer.callbacks.step", step]
    signalled += ["--trainer.callbacks.signal", number, "--trainer.callbacks.validating", str(validating).lower()]
    assert status(*base, *signalled, "--run", tmp_path) == EXIT_STATUS == 75
    assert signal.getsignal(signal.Signals[number]) == before
    stopped = torch.load(tmp_path / "checkpoints" / "stopped.ckpt", weights_only=True)
    assert stopped["global_step"] == saved
    assert status(*base, "--ckpt_path", "auto", "--run", tmp_path) == 0
    assert differences(last(tmp_path), last(whole)) == []
    assert rows(tmp_path) == rows(whole)


def fit_signalled_in_setup(*words):
    """`fit`, with SIGUSR1 before anything is ready to save."""
    setup = StopOnSignal.setup

    def signalled(self, *arguments, **named):
        os.kill(os.getpid(), signal.SIGUSR1)
        setup(self, *arguments, **named)

    StopOnSignal.setup = signalled
    return status(*words)


def test_a_signal_at_the_start_of_the_program_stops_after_the_first_batch(base, tmp_path):
    process = started(fit_signalled_in_setup, *base, "--run", tmp_path / "run", log=tmp_path / "log")
    process.join(SECONDS)
    assert process.exitcode == EXIT_STATUS, (tmp_path / "log").read_text()
    stopped = torch.load(tmp_path / "run" / "checkpoints" / "stopped.ckpt", weights_only=True)
    assert stopped["global_step"] == 1


def test_a_command_leaves_signals_as_they_were(base, tmp_path):
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert status(*base, "--run", tmp_path, "--data.batch_size", "-1") != 0
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_lightning_does_not_requeue_slurm_jobs(monkeypatch):
    """It saves from inside the handler, at any instruction of any rank."""
    job = {"JOB_ID": 1, "JOB_NAME": "train", "NTASKS": 1, "NTASKS_PER_NODE": 1, "NNODES": 1}
    for name, value in {**job, "PROCID": 0, "LOCALID": 0, "NODEID": 0}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    environment = trainer._accelerator_connector.cluster_environment
    assert isinstance(environment, SLURMEnvironment)
    assert environment.auto_requeue
    StopOnSignal().setup(trainer, None, "fit")
    assert not environment.auto_requeue


def test_after_an_error_a_signal_ends_the_process():
    callback, trainer = StopOnSignal(), Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        callback.on_train_start(trainer, None)
        callback.on_exception(trainer, None, SystemExit(EXIT_STATUS))
        assert signal.getsignal(signal.SIGTERM) == callback._record
        callback.on_exception(trainer, None, RuntimeError("connection closed"))
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def fit_interrupted_twice(*words):
    """`fit` with Ctrl-C twice within one step."""
    begin = StopOnSignal.on_train_batch_end

    def interrupted(self, *arguments, **named):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        begin(self, *arguments, **named)

    StopOnSignal.on_train_batch_end = interrupted
    return status(*words)


def test_a_second_interrupt_ends_the_process_at_once(base, tmp_path):
    process = started(fit_interrupted_twice, *base, "--run", tmp_path / "run", log=tmp_path / "log")
    process.join(SECONDS)
    assert process.exitcode == -signal.SIGINT, (tmp_path / "log").read_text()
    assert "Press Ctrl-C again to end at once" in (tmp_path / "log").read_text()
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))


def test_ignored_signals_stay_ignored():
    """As under `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    others = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    try:
        StopOnSignal().on_train_start(None, None)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        for number, handler in {**others, signal.SIGHUP: before}.items():
            signal.signal(number, handler)
