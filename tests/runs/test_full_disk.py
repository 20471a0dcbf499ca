"""A disk that is full while a training writes: a clear end, nothing lost, and exactly continued once there is room."""

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
def whole(base, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    assert status(*base, "--run", run) == 0
    return run


def breaks(function, after: int):
    """A function that fails from the call on that follows so many others, after half of its work."""
    calls = iter(range(10**6))

    def broken(content, *stream):
        if next(calls) < after:
            return function(content, *stream)
        for file in stream:
            file.write(b"half of it")
        raise FULL

    return broken


@pytest.mark.parametrize(("place", "name", "after"), [(torch, "save", 3), (ExperimentWriter, "save", 2)])
def test_it_ends_with_an_error_and_goes_on_when_there_is_room(
    place, name, after, base, whole, tmp_path, capsys, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(place, name, breaks(getattr(place, name), after))
        assert status(*base, "--run", tmp_path) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.splitlines()[-1].endswith("Free disk space and resume with --ckpt_path auto.")
    assert "No space left on device" in said
    assert newest_checkpoint([tmp_path / "checkpoints"]) is not None
    assert not list(tmp_path.rglob(".unfinished"))
    assert status(*base, "--run", tmp_path, "--ckpt_path", "auto") == 0
    assert differences(last(tmp_path), last(whole)) == []
    kept = rows(tmp_path)
    assert len(kept) >= len(rows(whole)) - (place is ExperimentWriter), "more is lost than what could not be written"
    assert all(row in rows(whole) for row in kept)
