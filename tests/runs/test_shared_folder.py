"""Ranks without a common folder or checkpoint fail before anything is lost."""

import os
from pathlib import Path

import pytest
import torch
from helpers.cli_runs import status, write_experiment
from helpers.ddp_inputs import DDP
from helpers.forked_ranks import Ranks

from lightning_paf.runs import folder as run_folder

pytestmark = pytest.mark.slow


def fit(words: list[str], options: list[list[str]]) -> None:
    """Train, with different options on each rank."""
    run_folder._SECONDS = 1.0
    raise SystemExit(status(*words, *DDP, *options[int(os.environ["LOCAL_RANK"])]))


def run_ranks(folder: Path, *options: list) -> Ranks:
    words = ["fit", "-c", write_experiment(folder)]
    return Ranks(2, folder / "logs", fit, words, [[str(word) for word in rank] for rank in options]).wait()


def test_different_folders_are_refused(tmp_path):
    ranks = run_ranks(tmp_path, ["--run", tmp_path / "a"], ["--run", tmp_path / "b"])
    assert ranks.status == [1, 1], ranks
    for output in ranks.output:
        assert f"in {tmp_path / 'a'} did not appear within 1 s for rank 1 on " in output, ranks
        assert f"({tmp_path / 'b'}). Pass the same --run everywhere" in output, ranks
    assert not list(tmp_path.glob("[ab]/checkpoints"))
    assert not list(tmp_path.glob("[ab]/.shared-*"))


def test_different_checkpoints_are_refused(tmp_path):
    """Another process writes to the folder while the ranks start."""
    assert status("fit", "-c", write_experiment(tmp_path), "--run", tmp_path / "run") == 0
    saved = tmp_path / "run" / "checkpoints"
    (saved / "other.ckpt").write_bytes((saved / "last.ckpt").read_bytes())
    words = ["--run", tmp_path / "run", "--trainer.max_epochs", 2, "--ckpt_path"]
    ranks = run_ranks(tmp_path, [*words, saved / "last.ckpt"], [*words, saved / "other.ckpt"])
    assert ranks.status == [1, 1], ranks
    assert all("but found: rank 0 last.ckpt, rank 1 other.ckpt." in output for output in ranks.output), ranks
    assert torch.load(saved / "last.ckpt", weights_only=True)["global_step"] == 4
