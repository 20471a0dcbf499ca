"""A disk that fills up during training: a clear error, no loss, exact resume."""

import errno
from pathlib import Path

import pytest
import torch
from helpers.cli_runs import status, write_experiment
from helpers.resume_helpers import differences, last, rows
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from lightning_paf.runs.checkpoints import newest_checkpoint

FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> list[str]:
    options = ["--trainer.max_epochs", "2", "--periodic.every_n_train_steps", "2"]
    return ["fit", "-c", write_experiment(tmp_path_factory.mktemp("tiny")), *options]


@pytest.fixture(scope="module")
def uninterrupted(base, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert status(*base, "--run", run) == 0
    return run


def failing(function, after: int):
    """Return a function whose calls fail in their middle, except for the first `after`."""
    calls = iter(range(10**6))

    def call(content, *stream):
        if next(calls) < after:
            return function(content, *stream)
        for file in stream:
            file.write(b"half of it")
        raise FULL

    return call


@pytest.mark.parametrize(("owner", "name", "after"), [(torch, "save", 3), (ExperimentWriter, "save", 2)])
def test_a_full_disk_ends_the_training_which_resumes(
    owner, name, after, base, uninterrupted, tmp_path, capsys, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing(getattr(owner, name), after))
        assert status(*base, "--run", tmp_path) == 1
    output = capsys.readouterr().err
    assert "Traceback" not in output
    assert output.splitlines()[-1].endswith("Free disk space and resume with --ckpt_path auto.")
    assert "No space left on device" in output
    assert newest_checkpoint([tmp_path / "checkpoints"]) is not None
    assert not list(tmp_path.rglob(".unfinished"))
    assert status(*base, "--run", tmp_path, "--ckpt_path", "auto") == 0
    assert differences(last(tmp_path), last(uninterrupted)) == []
    found, expected = rows(tmp_path), rows(uninterrupted)
    assert len(found) >= len(expected) - (owner is ExperimentWriter), "more is lost than the row that was not written"
    assert all(row in expected for row in found)
