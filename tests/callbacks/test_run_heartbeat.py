"""`progress.json` of a training while it runs, and after every kind of end."""

import json
import threading

import pytest
from helpers.cli_runs import status, write_experiment
from helpers.resume_helpers import ProgressReader, at_step

from lightning_paf.callbacks import run_heartbeat
from lightning_paf.runs.progress import FILE, Progress
from lightning_paf.utils.process import Process


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> list[str]:
    return ["fit", "-c", write_experiment(tmp_path_factory.mktemp("tiny"))]


def has_no_writer() -> bool:
    return FILE not in [thread.name for thread in threading.enumerate()]


def test_the_file_follows_a_training_to_its_end(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(run_heartbeat, "BEAT", 0.05)
    reader = ["--trainer.callbacks+=helpers.resume_helpers.ProgressReader", "--periodic.every_n_train_steps", 1]
    assert status(*tiny, *reader, "--run", tmp_path) == 0
    seen = ProgressReader.seen
    assert (seen.state, seen.step, seen.steps, seen.epoch, seen.epochs) == ("training", 2, 4, 0, 1)
    assert (seen.checkpoint, seen.checkpoint_step) in (("step=1.ckpt", 1), ("step=2.ckpt", 2))
    assert seen.process == Process.this()
    assert seen.seconds_per_step > 0
    assert seen.seconds_left == pytest.approx(2 * seen.seconds_per_step)
    done = Progress.read(tmp_path / FILE)
    assert (done.state, done.step, done.epoch, done.seconds_left) == ("finished", 4, 1, 0)
    assert (done.checkpoint, done.checkpoint_step) == ("last.ckpt", 4)
    assert done.images_per_second > 0
    assert has_no_writer()


def test_the_error_of_a_failed_training_is_kept(tiny, tmp_path):
    with pytest.raises(RuntimeError):
        status(*tiny, *at_step("FailsAt", 3), "--run", tmp_path)
    found = Progress.read(tmp_path / FILE)
    assert (found.state, found.step, found.error) == ("failed", 3, "RuntimeError: stopped before step 3")
    assert found.checkpoint == ""
    assert has_no_writer()


def test_a_stopped_training_resumes_at_its_step(tiny, tmp_path):
    assert status(*tiny, *at_step("SignalledAt", 2), "--run", tmp_path) == 75
    found = Progress.read(tmp_path / FILE)
    assert (found.state, found.step, found.error) == ("stopped", 3, "")
    assert (found.checkpoint, found.checkpoint_step) == ("stopped.ckpt", 3)
    assert status(*tiny, "--ckpt_path", "auto", "--run", tmp_path) == 0
    assert Progress.read(tmp_path / FILE).state == "finished"


def test_files_of_other_versions_are_read_and_damaged_ones_are_not(tmp_path):
    assert Progress.read(tmp_path / FILE) is None
    for text in ("", "{", "[]", '{"state": "training"}', '{"process": 3}'):
        (tmp_path / FILE).write_text(text)
        assert Progress.read(tmp_path / FILE) is None
    Progress(Process.this(), "training", 3, 10, 0, 1).write(tmp_path / FILE)
    content = json.loads((tmp_path / FILE).read_text()) | {"saved": True}
    del content["checkpoint"], content["checkpoint_step"]
    (tmp_path / FILE).write_text(json.dumps(content))
    found = Progress.read(tmp_path / FILE)
    assert (found.step, found.checkpoint, found.checkpoint_step) == (3, None, None)
