"""An interrupted training ends with the weights and metrics of a complete one."""

import json
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.cli_runs import status, write_experiment
from helpers.fakes import write_npz_dataset
from helpers.processes import started
from helpers.resume_helpers import at_step, content, differences, last, rows, settled

from lightning_paf.callbacks.exact_resume import random_state, set_random_state
from lightning_paf.utils.process import EXIT_STATUS

EPOCH = 4  # steps
SECONDS = 120  # far more than any of these takes
# All that a step can depend on: averaging, a parametric activation, augmentation, random starts.
OPTIONS = ["--trainer.max_epochs", "2", "--data.augment", "CropFlip", "--averaging", "WarmupEMA"]
OPTIONS += ["--monitor", "ActivationMonitor", "--monitor.picture", "false"]
SAVER = ["--trainer.callbacks+=helpers.resume_helpers.Saver"]
APGD = {"class_path": "APGD", "init_args": {"eps": 0.05, "steps": 8}}
WARM = json.dumps({"class_path": "WarmEval", "init_args": {"attack": APGD, "warm_steps": 2, "batch_size": 4}})


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> list[str]:
    return ["fit", "-c", write_experiment(tmp_path_factory.mktemp("tiny")), *OPTIONS]


@pytest.fixture(scope="module")
def uninterrupted(base, tmp_path_factory) -> Path:
    """A run with a checkpoint of every step."""
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert status(*base, *SAVER, "--run", run) == 0
    return run


def assert_same_end(run: Path, expected: Path) -> None:
    assert differences(last(run), last(expected)) == []
    assert rows(run)
    assert rows(expected)[-len(rows(run)) :] == rows(run)


@pytest.mark.parametrize(("saved", "workers"), [("step2", 0), ("step3", 2), (f"step{EPOCH}", 0), ("epoch0", 0)])
def test_a_training_resumes_from_any_checkpoint(saved, workers, base, uninterrupted, tmp_path, recwarn):
    words = ["--ckpt_path", uninterrupted / "saved" / f"{saved}.ckpt", "--data.num_workers", workers]
    assert status(*base, *words, "--run", tmp_path) == 0
    assert_same_end(tmp_path, uninterrupted)
    assert not [str(warning.message) for warning in recwarn if "not resumable" in str(warning.message)]


AWP = ["--model.objective", "AWP", "--model.objective.objective", "Natural"]
AWP += ["--model.objective.warmup", "0.3", "--model.objective.gamma", "0.1"]
MIXED = ["--averaging.every", "epoch", "--data.real_fraction", "0.5", "--data.real_schedule", "Switch"]

CYCLE = ["--model.schedule", "OneCycle", "--model.schedule.low_momentum", "0.5"]


@pytest.mark.parametrize(
    ("options", "saved", "column"),
    [
        # AWP starts with the first epoch after its warm-up, not with a later resume.
        ([*AWP, "--trainer.max_epochs", "-1", "--trainer.max_steps", str(2 * EPOCH)], ["step3", "epoch0"], None),
        (["--trainer.val_check_interval", "2", "--trainer.max_epochs", "1"], ["step2"], "val/acc"),
        ([*CYCLE, "--trainer.check_val_every_n_epoch", "2"], ["step2", f"step{EPOCH}"], "train/loss"),
        ([*MIXED, "--data.epoch", "64", "--data.synthetic", "{synthetic}"], ["step2", f"step{EPOCH}"], None),
    ],
    ids=["AWP and max_steps", "validation within an epoch", "epoch without validation", "averaged epochs, mixture"],
)
def test_a_training_resumes_with_other_options(options, saved, column, base, tmp_path):
    synthetic = write_npz_dataset(tmp_path / "synthetic") / "train.npz"
    words = [*base, *(option.format(synthetic=synthetic) for option in options)]
    assert status(*words, *SAVER, "--run", tmp_path / "uninterrupted") == 0
    for name in saved:
        checkpoint = tmp_path / "uninterrupted" / "saved" / f"{name}.ckpt"
        assert status(*words, "--ckpt_path", checkpoint, "--run", tmp_path / name) == 0
        assert_same_end(tmp_path / name, tmp_path / "uninterrupted")
        assert column is None or len([row for row in rows(tmp_path / name) if column in row]) == 2


def test_a_training_with_averaging_of_lightning_resumes_from_the_end_of_an_epoch(base, tmp_path):
    """Its schedule adds `swa_lr` to the groups of the optimiser."""
    words = [*base, "--averaging", "null", "--trainer.max_epochs", "3"]
    words += ["--trainer.callbacks+=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs", "0.05"]
    words += ["--trainer.callbacks.swa_epoch_start", "2", "--trainer.callbacks.annealing_epochs", "1"]
    assert status(*words, *SAVER, "--run", tmp_path / "uninterrupted") == 0
    assert status(*words, "--ckpt_path", tmp_path / "uninterrupted/saved/epoch1.ckpt", "--run", tmp_path / "run") == 0
    assert_same_end(tmp_path / "run", tmp_path / "uninterrupted")


def test_a_killed_run_resumes_in_its_folder(base, uninterrupted, tmp_path):
    """The table has later rows than the checkpoint, or there is no checkpoint yet."""
    step = random.randrange(2 * EPOCH)
    print(f"step {step}")
    run, log = tmp_path / "run", tmp_path / "log"
    words = [*base, "--periodic.every_n_train_steps", "2", "--run", str(run), "--ckpt_path", "auto"]
    process = started(status, *words, *at_step("KilledAt", step), log=log)
    process.join(SECONDS)
    assert process.exitcode == -signal.SIGKILL, log.read_text()
    assert status(*words) == 0
    assert differences(last(run), last(uninterrupted)) == []
    assert rows(run) == rows(uninterrupted)


def test_a_failed_run_resumes_before_its_last_rows_without_logging_them_twice(base, uninterrupted, tmp_path):
    """The checkpoint that it resumed from is removed like any other."""
    words = [*base, "--periodic.every_n_train_steps", "3", "--periodic.save_top_k", "1", "--run", tmp_path]
    with pytest.raises(RuntimeError, match="stopped before step 5"):
        status(*words, *at_step("FailsAt", 5))
    (tmp_path / "checkpoints" / "last.ckpt").unlink()
    assert status(*words, "--ckpt_path", "last") == 0
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"last.ckpt", "step=6.ckpt"}
    assert differences(last(tmp_path), last(uninterrupted)) == []
    assert rows(tmp_path) == rows(uninterrupted)


def test_no_checkpoint_is_saved_while_gradients_are_accumulated(base, tmp_path):
    words = [*base, "--trainer.accumulate_grad_batches", "2", "--periodic.every_n_train_steps", "1"]
    words += ["--periodic.save_top_k", "-1"]
    assert status(*words, "--run", tmp_path / "uninterrupted") == 0
    saved, resumed = (tmp_path / run / "checkpoints" for run in ("uninterrupted", "resumed"))
    assert {path.stem for path in saved.iterdir()} == {"last", "step=1", "step=2", "step=3", "step=4"}
    assert status(*words, "--ckpt_path", saved / "step=1.ckpt", "--run", tmp_path / "resumed") == 0
    assert_same_end(tmp_path / "resumed", tmp_path / "uninterrupted")
    assert {path.stem for path in resumed.iterdir()} == {"last", "step=2", "step=3", "step=4"}
    assert differences(settled(resumed / "step=3.ckpt"), settled(saved / "step=3.ckpt")) == []


def test_overfit_batches_restart_the_epoch(base, uninterrupted, tmp_path):
    words = [*base, "--trainer.overfit_batches", "3", "--run", tmp_path]
    with pytest.warns(UserWarning, match="overfit_batches, .* the current epoch restarts"):
        assert status(*words, "--ckpt_path", uninterrupted / "saved" / "step2.ckpt") == 0
    assert last(tmp_path)["global_step"] == 3 + 3


def test_a_stopped_validation_restarts_with_its_adversarial_images(base, tmp_path):
    words = [*base, "--val_attack", WARM, "--data.eval_batch_size", "5"]
    run = ["--run", tmp_path / "run"]
    assert status(*words, "--run", tmp_path / "uninterrupted") == 0
    assert status(*words, *at_step("SignalledAt", 2 * EPOCH, validating="true"), *run) == EXIT_STATUS
    assert status(*words, "--ckpt_path", "auto", *run) == 0
    assert_same_end(tmp_path / "run", tmp_path / "uninterrupted")
    first, second = [float(row["val/aa_passes"]) for row in rows(tmp_path / "run") if "val/aa_passes" in row]
    assert second < first


def test_a_signal_saves_a_checkpoint_even_without_a_checkpoint_slot(base, uninterrupted, tmp_path):
    words = [*base, "--checkpoint", "null", "--run", tmp_path]
    assert status(*words, *at_step("SignalledAt", 5)) == EXIT_STATUS
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["stopped.ckpt"]
    assert status(*words, *SAVER, "--ckpt_path", "auto") == 0
    assert differences(*(settled(run / "saved" / "step8.ckpt") for run in (tmp_path, uninterrupted))) == []


def test_fast_dev_run_does_not_change_a_run(base, uninterrupted):
    before = content(uninterrupted)
    assert status(*base, "--run", uninterrupted, "--ckpt_path", "auto", "--trainer.fast_dev_run", "true") == 0
    assert content(uninterrupted) == before


def drawn() -> list[float]:
    return [torch.rand(()).item(), np.random.random(), random.random(), torch.randn(3).sum().item()]  # noqa: NPY002


def test_a_random_state_is_restored_from_plain_values(tmp_path):
    np.random.standard_normal()  # noqa: NPY002  # the generator keeps the second of a pair
    torch.save(random_state(torch.device("cpu")), tmp_path / "state")
    expected = [drawn() for _ in range(3)]
    set_random_state(torch.load(tmp_path / "state", weights_only=True), torch.device("cpu"))
    assert [drawn() for _ in range(3)] == expected
