"""A training that was stopped ends as that which was not: bit by bit, and with the same rows in `metrics.csv`."""

import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_runs import status, write_experiment
from interrupted import differences, last, rows

from lightning_paf.callbacks.exact_resume import random_state, set_random_state

TESTS = Path(__file__).parent.parent
EPOCH = 4  # steps in it
# All that a step can depend on: averaging, a parametric activation, augmentation, random starts.
OPTIONS = ["--trainer.max_epochs", "2", "--data.augment", "CropFlip", "--averaging", "WarmupEMA"]
OPTIONS += ["--monitor", "ActivationMonitor"]
SAVER = ["--trainer.callbacks+=interrupted.Saver"]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> list[str]:
    return ["fit", "-c", write_experiment(tmp_path_factory.mktemp("tiny")), *OPTIONS]


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory) -> Path:
    """A run that nobody stops, with all checkpoints that it might have been stopped at."""
    run = tmp_path_factory.mktemp("whole")
    assert status(*base, *SAVER, "--run", run / "run") == 0
    return run / "run"


def assert_same_end(run: Path, whole: Path) -> None:
    assert differences(last(run), last(whole)) == []
    assert rows(run)
    assert rows(whole)[-len(rows(run)) :] == rows(run)


@pytest.mark.parametrize(
    ("saved", "workers"), [("step2", 0), ("step3", 2), (f"step{EPOCH}", 0), ("epoch0", 2), ("step7", 0)]
)
def test_resumed_at_any_checkpoint(saved, workers, base, whole, tmp_path, recwarn):
    words = ["--ckpt_path", whole / "saved" / f"{saved}.ckpt", "--data.num_workers", workers]
    assert status(*base, *words, "--run", tmp_path) == 0
    assert_same_end(tmp_path, whole)
    assert not [str(warning.message) for warning in recwarn if "not resumable" in str(warning.message)]


def test_resumed_where_a_validation_is_due_in_the_middle_of_an_epoch(base, tmp_path):
    words = [*base, "--trainer.val_check_interval", "2", "--trainer.max_epochs", "1"]
    assert status(*words, *SAVER, "--run", tmp_path / "whole") == 0
    assert status(*words, "--ckpt_path", tmp_path / "whole" / "saved" / "step2.ckpt", "--run", tmp_path / "run") == 0
    assert_same_end(tmp_path / "run", tmp_path / "whole")
    assert len([row for row in rows(tmp_path / "run") if "val/acc" in row]) == 2


def test_resumed_at_the_end_of_an_epoch_without_validation(base, tmp_path):
    words = [*base, "--trainer.check_val_every_n_epoch", "2"]
    assert status(*words, *SAVER, "--run", tmp_path / "whole") == 0
    resumed = ["--ckpt_path", tmp_path / "whole" / "saved" / f"step{EPOCH}.ckpt", "--run", tmp_path / "run"]
    assert status(*words, *resumed) == 0
    assert_same_end(tmp_path / "run", tmp_path / "whole")
    assert len([row for row in rows(tmp_path / "run") if "train/loss" in row]) == 2


def test_resumed_at_the_end_of_an_epoch_where_steps_are_counted(base, tmp_path):
    words = [*base, "--trainer.max_epochs", "-1", "--trainer.max_steps", str(2 * EPOCH)]
    assert status(*words, *SAVER, "--run", tmp_path / "whole") == 0
    resumed = ["--ckpt_path", tmp_path / "whole" / "saved" / "epoch0.ckpt", "--run", tmp_path / "run"]
    assert status(*words, *resumed) == 0
    assert_same_end(tmp_path / "run", tmp_path / "whole")


def test_killed_and_continued_in_its_folder(base, whole, tmp_path):
    """The last checkpoint before the kill is in the middle of the second epoch, and later rows are in the table."""
    words = [*base, "--periodic.every_n_train_steps", "2", "--run", str(tmp_path)]
    killer = ["--trainer.callbacks+=interrupted.KilledAt", "--trainer.callbacks.step", "7"]
    path = f"{TESTS}:{TESTS.parent}"
    killed = subprocess.run(
        [sys.executable, "-m", "lightning_paf", *words, *killer],
        env={"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"last.ckpt", "step=4.ckpt", "step=6.ckpt"}
    assert status(*words, "--ckpt_path", "auto") == 0
    assert differences(last(tmp_path), last(whole)) == []
    assert rows(tmp_path) == rows(whole)


def test_failed_and_continued_in_its_folder(base, whole, tmp_path):
    """It goes back to a step before the end of the first epoch: the rows of that are logged again, but not twice."""
    words = [*base, "--periodic.every_n_train_steps", "3", "--run", tmp_path]
    failing = ["--trainer.callbacks+=interrupted.FailsAt", "--trainer.callbacks.step", "5"]
    with pytest.raises(RuntimeError, match="stopped before step 5"):
        status(*words, *failing)
    (tmp_path / "checkpoints" / "last.ckpt").unlink()
    assert status(*words, "--ckpt_path", "last") == 0
    assert differences(last(tmp_path), last(whole)) == []
    assert rows(tmp_path) == rows(whole)


def drawn() -> list[float]:
    return [torch.rand(()).item(), np.random.random(), random.random(), torch.randn(3).sum().item()]  # noqa: NPY002


def test_a_random_state_is_restored_and_can_be_loaded_without_running_code(tmp_path):
    np.random.standard_normal()  # noqa: NPY002  # keeps the second of a pair
    torch.save(random_state(torch.device("cpu")), tmp_path / "state")
    expected = [drawn() for _ in range(3)]
    set_random_state(torch.load(tmp_path / "state", weights_only=True), torch.device("cpu"))
    assert [drawn() for _ in range(3)] == expected
