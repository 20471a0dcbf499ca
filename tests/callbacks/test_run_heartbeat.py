"""What a training leaves for those who look from outside: while it works, and however it ends."""

import threading

import pytest
from helpers.cli_runs import status, write_experiment
from lightning.pytorch import Callback

from lightning_paf.callbacks import run_heartbeat
from lightning_paf.runs.progress import FILE, Progress
from lightning_paf.utils.process import Process


class Watcher(Callback):
    """Waits before the third step until the file tells of the second."""

    seen: Progress | None = None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 2:
            for _ in range(6000):
                Watcher.seen = Progress.read(run_heartbeat.Path(trainer.log_dir) / FILE)
                if Watcher.seen is not None and Watcher.seen.step == 2:
                    break
                threading.Event().wait(0.01)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return write_experiment(tmp_path_factory.mktemp("tiny"))


def is_over() -> bool:
    return FILE not in [thread.name for thread in threading.enumerate()]


def test_a_training_shows_its_step_while_it_works_and_says_that_it_is_done(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(run_heartbeat, "BEAT", 0.05)
    watched = ["--trainer.callbacks+=test_run_heartbeat.Watcher", "--run", tmp_path]
    assert status("fit", "-c", tiny, *watched) == 0
    from test_run_heartbeat import Watcher  # the class that the command line has imported

    seen = Watcher.seen
    assert (seen.state, seen.step, seen.steps, seen.epoch, seen.epochs) == ("training", 2, 4, 0, 1)
    assert seen.process == Process.this()
    assert seen.seconds_per_step > 0
    assert seen.seconds_left == pytest.approx(2 * seen.seconds_per_step)
    done = Progress.read(tmp_path / FILE)
    assert (done.state, done.step, done.epoch, done.seconds_left) == ("finished", 4, 1, 0)
    assert done.images_per_second > 0
    assert is_over()


def test_a_training_that_fails_says_why(tiny, tmp_path):
    failing = [
        "--trainer.callbacks+=helpers.resume_helpers.FailsAt",
        "--trainer.callbacks.step",
        "3",
        "--run",
        tmp_path,
    ]
    with pytest.raises(RuntimeError):
        status("fit", "-c", tiny, *failing)
    left = Progress.read(tmp_path / FILE)
    assert (left.state, left.step, left.error) == ("failed", 3, "RuntimeError: stopped before step 3")
    assert is_over()


def test_a_training_that_is_stopped_says_so_and_goes_on_at_its_step(tiny, tmp_path):
    signalled = [
        "--trainer.callbacks+=helpers.resume_helpers.SignalledAt",
        "--trainer.callbacks.step",
        "2",
        "--run",
        tmp_path,
    ]
    assert status("fit", "-c", tiny, *signalled) == 75
    left = Progress.read(tmp_path / FILE)
    assert (left.state, left.step, left.error) == ("stopped", 3, "")
    assert status("fit", "-c", tiny, "--ckpt_path", "auto", "--run", tmp_path) == 0
    assert Progress.read(tmp_path / FILE).state == "finished"


def test_what_is_not_whole_or_of_another_kind_is_nothing(tmp_path):
    assert Progress.read(tmp_path / FILE) is None
    for text in ("", "{", "[]", '{"state": "training"}', '{"process": 3}'):
        (tmp_path / FILE).write_text(text)
        assert Progress.read(tmp_path / FILE) is None
