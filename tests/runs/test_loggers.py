"""What TensorBoard shows of a run that was stopped, and tables on a full disk."""

import errno

import pytest
from helpers.cli_runs import status, write_experiment
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_paf.runs import loggers as run_logs
from lightning_paf.runs.loggers import loggers


def steps(run, tag: str) -> list[int]:
    return [event.step for event in EventAccumulator(str(run)).Reload().Scalars(tag)]


def test_a_continued_run_tells_tensorboard_nothing_twice(tmp_path):
    words = ["fit", "-c", write_experiment(tmp_path), "--trainer.max_epochs", "2", "--run", tmp_path / "run"]
    words += ["--periodic.every_n_train_steps", "3"]
    failing = ["--trainer.callbacks+=helpers.resume_helpers.FailsAt", "--trainer.callbacks.step", "5"]
    with pytest.raises(RuntimeError, match="stopped before step 5"):
        status(*words, *failing)
    (tmp_path / "run" / "checkpoints" / "last.ckpt").unlink()
    assert len(list((tmp_path / "run").glob("events.*"))) == 1
    assert status(*words, "--ckpt_path", "auto") == 0
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert "hp_metric" not in events.Tags()["scalars"] or len(events.Scalars("hp_metric")) == 1
    assert steps(tmp_path / "run", "val/acc") == [3, 7]
    assert steps(tmp_path / "run", "train/loss") == [3, 7]
    assert steps(tmp_path / "run", "epoch") == sorted(steps(tmp_path / "run", "epoch"))


def test_new_columns_on_a_full_disk_leave_the_table_as_it_was(tmp_path, monkeypatch):
    table, _ = loggers(tmp_path / "run", None)
    table.log_metrics({"a": 1.0}, 0)
    table.save()
    before = (tmp_path / "run" / "metrics.csv").read_bytes()

    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_logs, "write_whole", full)
    table.log_metrics({"b": 1.0}, 1)
    with pytest.raises(
        OSError, match=r"Metrics could not be written to .*No space left .*checkpoints are as they were"
    ):
        table.save()
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == before
