"""An interrupted training ends as an uninterrupted one: bit by bit, and with the same rows in `metrics.csv`."""

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
from helpers.resume_helpers import differences, last, rows, settled

from lightning_paf.callbacks.exact_resume import random_state, set_random_state
from lightning_paf.callbacks.stop_on_signal import EXIT_STATUS
from lightning_paf.runs.checkpoints import newest_checkpoint, step_of

EPOCH = 4  # steps in it
SECONDS = 120  # far more than any of these takes
# All that a step can depend on: averaging, a parametric activation, augmentation, random starts.
OPTIONS = ["--trainer.max_epochs", "2", "--data.augment", "CropFlip", "--averaging", "WarmupEMA"]
OPTIONS += ["--monitor", "ActivationMonitor"]
SAVER = ["--trainer.callbacks+=helpers.resume_helpers.Saver"]
APGD = {"class_path": "APGD", "init_args": {"eps": 0.05, "steps": 8}}
WARM = json.dumps({"class_path": "WarmEval", "init_args": {"attack": APGD, "warm_steps": 2, "batch_size": 4}})


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> list[str]:
    return ["fit", "-c", write_experiment(tmp_path_factory.mktemp("tiny")), *OPTIONS]


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory) -> Path:
    """An uninterrupted run, with a checkpoint of every step."""
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


@pytest.mark.parametrize("step", [2, EPOCH])
def test_an_average_of_epochs_and_a_schedule_of_real_images_go_on(step, base, tmp_path):
    synthetic = write_npz_dataset(tmp_path / "synthetic") / "train.npz"
    words = [*base, "--averaging.every", "epoch", "--data.synthetic", synthetic, "--data.real_fraction", "0.5"]
    words += ["--data.real_schedule", "Switch", "--data.epoch", "64"]
    assert status(*words, *SAVER, "--run", tmp_path / "whole") == 0
    resumed = ["--ckpt_path", tmp_path / "whole" / "saved" / f"step{step}.ckpt", "--run", tmp_path / "run"]
    assert status(*words, *resumed) == 0
    assert last(tmp_path / "run")["averaging_state"]["n_averaged"] == 2
    assert_same_end(tmp_path / "run", tmp_path / "whole")


AWP = ["--model.objective", "AWP", "--model.objective.objective", "Natural"]
AWP += ["--model.objective.warmup", "0.3", "--model.objective.gamma", "0.1"]


@pytest.mark.parametrize(
    ("options", "saved", "column"),
    [
        (AWP, "step3", None),  # starts with the first epoch after its warm-up, not with the first start after it
        (["--trainer.val_check_interval", "2", "--trainer.max_epochs", "1"], "step2", "val/acc"),
        (["--trainer.check_val_every_n_epoch", "2"], f"step{EPOCH}", "train/loss"),
        (["--trainer.max_epochs", "-1", "--trainer.max_steps", str(2 * EPOCH)], "epoch0", None),
    ],
    ids=["AWP", "validation within an epoch", "epoch without validation", "max_steps"],
)
def test_resumed_under_other_options(options, saved, column, base, tmp_path):
    assert status(*base, *options, *SAVER, "--run", tmp_path / "whole") == 0
    resumed = ["--ckpt_path", tmp_path / "whole" / "saved" / f"{saved}.ckpt", "--run", tmp_path / "run"]
    assert status(*base, *options, *resumed) == 0
    assert_same_end(tmp_path / "run", tmp_path / "whole")
    assert column is None or len([row for row in rows(tmp_path / "run") if column in row]) == 2


def test_killed_at_random_steps_and_continued_in_its_folder(base, whole, tmp_path):
    """Later rows than those of the checkpoint are in the table, and a kill may come before there is a checkpoint."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    run, log = tmp_path / "run", tmp_path / "log"
    words = [*base, "--periodic.every_n_train_steps", "2", "--run", str(run), "--ckpt_path", "auto"]
    for kill in range(2):
        newest = newest_checkpoint([run / "checkpoints"])
        step = random.Random(seed + kill).randrange(step_of(newest) if newest else 0, 2 * EPOCH)
        killer = ["--trainer.callbacks+=helpers.resume_helpers.KilledAt", "--trainer.callbacks.step", str(step)]
        process = started(status, *words, *killer, log=log)
        process.join(SECONDS)
        assert process.exitcode == -signal.SIGKILL, f"kill {kill} before step {step}: {log.read_text()}"
    assert status(*words) == 0
    assert differences(last(run), last(whole)) == []
    assert rows(run) == rows(whole)


def test_failed_and_continued_in_its_folder(base, whole, tmp_path):
    """It goes back to a step before the end of the first epoch: the rows of that are logged again, but not twice."""
    words = [*base, "--periodic.every_n_train_steps", "3", "--run", tmp_path]
    failing = ["--trainer.callbacks+=helpers.resume_helpers.FailsAt", "--trainer.callbacks.step", "5"]
    with pytest.raises(RuntimeError, match="stopped before step 5"):
        status(*words, *failing)
    (tmp_path / "checkpoints" / "last.ckpt").unlink()
    assert status(*words, "--ckpt_path", "last") == 0
    assert differences(last(tmp_path), last(whole)) == []
    assert rows(tmp_path) == rows(whole)


def test_accumulated_gradients_are_in_no_checkpoint(base, tmp_path):
    """There are none at a step of the optimiser, and nothing is saved between two, right after a restart neither."""
    words = [*base, "--trainer.accumulate_grad_batches", "2", "--periodic.every_n_train_steps", "1"]
    words += ["--periodic.save_top_k", "-1"]
    assert status(*words, "--run", tmp_path / "whole") == 0
    saved = tmp_path / "whole" / "checkpoints"
    assert {path.stem for path in saved.iterdir()} == {"last", "step=1", "step=2", "step=3", "step=4"}
    assert status(*words, "--ckpt_path", saved / "step=1.ckpt", "--run", tmp_path / "run") == 0
    assert_same_end(tmp_path / "run", tmp_path / "whole")
    resumed = tmp_path / "run" / "checkpoints"
    assert {path.stem for path in resumed.iterdir()} == {"last", "step=2", "step=3", "step=4"}
    assert differences(settled(resumed / "step=3.ckpt"), settled(saved / "step=3.ckpt")) == []


def test_overfit_batches_resume_but_not_exactly(base, whole, tmp_path):
    words = [*base, "--trainer.overfit_batches", "3", "--run", tmp_path]
    with pytest.warns(UserWarning, match="overfit_batches .* the current epoch restarts"):
        assert status(*words, "--ckpt_path", whole / "saved" / "step2.ckpt") == 0
    assert last(tmp_path)["global_step"] == 3 + 3


def test_the_memory_of_a_check_goes_on(base, tmp_path):
    """Also where the training stops in the validation: that is begun anew, from the memory it began with."""
    words = [*base, "--val_attack", WARM, "--trainer.max_epochs", "3", "--data.eval_batch_size", "5"]
    assert status(*words, *SAVER, "--run", tmp_path / "whole") == 0
    signalled = ["--trainer.callbacks+=helpers.resume_helpers.SignalledAt", "--trainer.callbacks.step", 2 * EPOCH]
    run = ["--run", tmp_path / "run"]
    assert status(*words, *signalled, "--trainer.callbacks.validating", "true", *run) == EXIT_STATUS
    assert status(*words, "--ckpt_path", "auto", *run) == 0
    assert_same_end(tmp_path / "run", tmp_path / "whole")
    passes = [float(row["val/aa_passes"]) for row in rows(tmp_path / "run") if "val/aa_passes" in row]
    assert len(passes) == 3
    assert max(passes[1:]) < passes[0], "the memory was lost"


def test_without_checkpoints_a_signal_leaves_one_all_the_same(base, whole, tmp_path):
    words = [*base, "--checkpoint", "null", "--run", tmp_path]
    signalled = ["--trainer.callbacks+=helpers.resume_helpers.SignalledAt", "--trainer.callbacks.step", "5"]
    assert status(*words, *signalled) == EXIT_STATUS
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["stopped.ckpt"]
    assert status(*words, *SAVER, "--ckpt_path", "auto") == 0
    assert differences(settled(tmp_path / "saved" / "step8.ckpt"), settled(whole / "saved" / "step8.ckpt")) == []


def test_a_rehearsal_leaves_a_run_alone(base, whole):
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    assert status(*base, "--run", whole, "--ckpt_path", "auto", "--trainer.fast_dev_run", "true") == 0
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before


def drawn() -> list[float]:
    return [torch.rand(()).item(), np.random.random(), random.random(), torch.randn(3).sum().item()]  # noqa: NPY002


def test_a_random_state_is_restored_and_can_be_loaded_without_running_code(tmp_path):
    np.random.standard_normal()  # noqa: NPY002  # keeps the second of a pair
    torch.save(random_state(torch.device("cpu")), tmp_path / "state")
    expected = [drawn() for _ in range(3)]
    set_random_state(torch.load(tmp_path / "state", weights_only=True), torch.device("cpu"))
    assert [drawn() for _ in range(3)] == expected
