"""Trainings stopped by a signal: checkpoint, exit status 75, exact resume."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from helpers.cli_runs import status, write_experiment
from helpers.processes import started
from helpers.resume_helpers import at_step, differences, last, rows
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Trainer

from lightning_paf.callbacks import StopOnSignal, stop_on_signal
from lightning_paf.data.samplers import MixedSampler
from lightning_paf.utils.process import EXIT_STATUS

SECONDS = 120  # far more than any of these takes


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> list[str]:
    options = ["--averaging", "WarmupEMA", "--data.eval_batch_size", "5", "--trainer.max_epochs", "2"]
    return ["fit", "-c", write_experiment(tmp_path_factory.mktemp("tiny")), *options]


@pytest.fixture(scope="module")
def uninterrupted(base, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("uninterrupted")
    assert status(*base, "--run", run) == 0
    return run


def stopped_step(run: Path) -> int:
    return torch.load(run / "checkpoints" / "stopped.ckpt", weights_only=True)["global_step"]


@pytest.mark.parametrize(
    ("number", "step", "validating", "saved"),
    [("SIGTERM", 2, False, 3), ("SIGINT", 4, True, 4), ("SIGUSR1", 0, False, 1), ("SIGHUP", 0, False, 1)],
)
def test_a_training_stops_after_the_batch_and_resumes(number, step, validating, saved, base, uninterrupted, tmp_path):
    before = signal.getsignal(signal.Signals[number])
    options = {"signal": number, "validating": str(validating).lower()}
    assert status(*base, *at_step("SignalledAt", step, **options), "--run", tmp_path) == EXIT_STATUS == 75
    assert signal.getsignal(signal.Signals[number]) == before
    assert stopped_step(tmp_path) == saved
    if step:
        assert status(*base, "--ckpt_path", "auto", "--run", tmp_path) == 0
        assert differences(last(tmp_path), last(uninterrupted)) == []
        assert rows(tmp_path) == rows(uninterrupted)
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]


def fit_signalled_in_setup(number, *words):
    """Run `fit`, with a signal before anything can be saved."""
    setup = StopOnSignal.setup

    def signalled(self, *arguments, **named):
        os.kill(os.getpid(), number)
        setup(self, *arguments, **named)

    StopOnSignal.setup = signalled
    return status(*words)


def fit_interrupted_twice(*words):
    """Run `fit`, with Ctrl-C twice in one step."""
    begin = StopOnSignal.on_train_batch_end

    def interrupted(self, *arguments, **named):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        begin(self, *arguments, **named)

    StopOnSignal.on_train_batch_end = interrupted
    return status(*words)


def run_process(work, base, folder: Path) -> tuple[int, str]:
    """Return exit status and output of `work` in another process."""
    process = started(work, *base, "--run", folder / "run", log=folder / "log")
    process.join(SECONDS)
    return process.exitcode, (folder / "log").read_text()


def test_a_signal_at_the_start_of_the_program_stops_after_the_first_batch(base, tmp_path):
    exit_status, output = run_process(fit_signalled_in_setup, [signal.SIGUSR1, *base], tmp_path)
    assert exit_status == EXIT_STATUS, output
    assert stopped_step(tmp_path / "run") == 1


def test_a_termination_before_the_training_is_restarted(base, tmp_path):
    """`docker/slurm/train.sbatch` requeues a job with this status, and the restart begins a new training."""
    exit_status, output = run_process(fit_signalled_in_setup, [signal.SIGTERM, *base], tmp_path)
    assert exit_status == EXIT_STATUS, output
    assert "Traceback" not in output
    assert not list((tmp_path / "run").glob("**/*.ckpt"))


def test_a_second_interrupt_ends_the_process_at_once(base, tmp_path):
    exit_status, output = run_process(fit_interrupted_twice, base, tmp_path)
    assert exit_status == -signal.SIGINT, output
    assert "Press Ctrl-C again to end at once" in output
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))


def fit_signalled_while_waiting_for_data(*words):
    """Run `fit`, with SIGTERM and then no data."""

    def silent(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(SECONDS)
        yield 0

    MixedSampler.__iter__, stop_on_signal.PATIENCE = silent, 1
    return status(*words)


def test_a_signal_ends_a_wait_for_data(base, tmp_path):
    exit_status, output = run_process(fit_signalled_while_waiting_for_data, base, tmp_path)
    assert exit_status == EXIT_STATUS, output
    assert "Stopped by a signal, after 1 s without data and without a new checkpoint. Resume with" in output


def test_a_refused_command_restores_the_signal_mask(base, tmp_path):
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert status(*base, "--run", tmp_path, "--data.batch_size", "-1") != 0
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_lightning_does_not_requeue_slurm_jobs(monkeypatch):
    """Lightning would save inside the handler, at any instruction of any rank."""
    job = {"JOB_ID": 1, "JOB_NAME": "train", "NTASKS": 1, "NTASKS_PER_NODE": 1, "NNODES": 1}
    for name, value in {**job, "PROCID": 0, "LOCALID": 0, "NODEID": 0}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    environment = trainer._accelerator_connector.cluster_environment
    assert isinstance(environment, SLURMEnvironment)
    assert environment.auto_requeue
    StopOnSignal().setup(trainer, None, "fit")
    assert not environment.auto_requeue


@pytest.fixture
def handlers():
    """Restore the handlers of all signals."""
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_after_an_error_a_signal_ends_the_process(handlers):
    callback, trainer = StopOnSignal(), Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    callback.on_train_start(trainer, None)
    callback.on_exception(trainer, None, SystemExit(EXIT_STATUS))
    assert signal.getsignal(signal.SIGTERM) == callback._record
    callback.on_exception(trainer, None, RuntimeError("connection closed"))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_ignored_signals_stay_ignored(handlers):
    """SIGHUP is ignored, as under `nohup`."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    StopOnSignal().on_train_start(None, None)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
