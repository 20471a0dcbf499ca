"""Ranks that do not see one folder, or resume from different checkpoints, fail before anything is lost."""

import os
from pathlib import Path

import pytest
import torch
from helpers.cli_runs import status, write_experiment
from helpers.forked_ranks import Ranks

from lightning_paf.runs import folder as run_folder

pytestmark = pytest.mark.slow

BOTH = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]


def fit(words: list[str], places: list[str]) -> None:
    """Train, on each rank with its own words for the run folder."""
    run_folder._SECONDS = 1.0
    raise SystemExit(status(*words, *BOTH, *places[int(os.environ["LOCAL_RANK"])]))


def begin(tmp_path: Path, *places: list[str]) -> Ranks:
    words = ["fit", "-c", write_experiment(tmp_path)]
    return Ranks(2, tmp_path / "logs", fit, words, [[str(word) for word in place] for place in places]).wait()


def test_two_folders_are_not_one(tmp_path):
    ranks = begin(tmp_path, ["--run", tmp_path / "a"], ["--run", tmp_path / "b"])
    assert ranks.status == [1, 1], ranks
    for output in ranks.output:
        assert f"in {tmp_path / 'a'} is not seen after 1 s by rank 1 on " in output, ranks
        assert f"({tmp_path / 'b'}). Pass the same --run everywhere" in output, ranks
    assert not list(tmp_path.glob("[ab]/checkpoints"))
    assert not list(tmp_path.glob("[ab]/.shared-*"))


def test_two_checkpoints_are_not_one(tmp_path):
    """As when another process still writes there while the ranks look."""
    assert status("fit", "-c", write_experiment(tmp_path), "--run", tmp_path / "run") == 0
    saved = tmp_path / "run" / "checkpoints"
    (saved / "other.ckpt").write_bytes((saved / "last.ckpt").read_bytes())
    words = ["--run", tmp_path / "run", "--trainer.max_epochs", 2, "--ckpt_path"]
    ranks = begin(tmp_path, [*words, saved / "last.ckpt"], [*words, saved / "other.ckpt"])
    assert ranks.status == [1, 1], ranks
    assert all("but found: rank 0 last.ckpt, rank 1 other.ckpt." in output for output in ranks.output), ranks
    assert torch.load(saved / "last.ckpt", weights_only=True)["global_step"] == 4


def test_a_batch_that_does_not_divide_leaves_no_trace(tmp_path):
    run = ["--run", tmp_path / "run", "--data.batch_size", 15]
    ranks = begin(tmp_path, run, run)
    assert ranks.status == [1, 1], ranks
    assert "must be a multiple of the 2 devices, got 15. Pass --data.batch_size 14," in ranks.output[0], ranks
    assert not (tmp_path / "run").exists()
