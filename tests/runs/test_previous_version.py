"""A run of an earlier version: an interrupted training, a result and evidence."""

import csv
import shutil
from pathlib import Path

import pytest
import torch
from helpers.cli_runs import status
from helpers.fakes import write_npz_dataset
from safetensors.torch import load_file

from lightning_paf.evaluation import EvaluationResult

RUN = Path(__file__).parent / "previous_version"
CHECKPOINTS = Path("previous", "checkpoints")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A copy of the run, with the working directory of the original command."""
    shutil.copytree(RUN, tmp_path / "previous")
    write_npz_dataset(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    return Path("previous")


def test_it_resumes_where_it_stopped(run):
    assert status("fit", "-c", run / "config.yaml", "--run", run, "--ckpt_path", "auto") == 0
    resumed = torch.load(CHECKPOINTS / "last.ckpt", weights_only=True)
    assert resumed["global_step"] == 8
    expected = load_file(run / "uninterrupted.safetensors")
    torch.testing.assert_close(dict(resumed["state_dict"]), expected, rtol=0, atol=1e-6)
    steps = [row["step"] for row in csv.DictReader((run / "metrics.csv").read_text().splitlines())]
    assert steps == ["3"] * 3 + ["7"] * 3, "rows are missing or repeated"


def test_its_result_is_found_again_and_kept(run):
    before = (run / "test" / "pgd_linf_8-255.json").read_bytes()
    assert status("test", "--ckpt_path", CHECKPOINTS / "stopped.ckpt", "--run", run) == 0
    (new,) = (run / "test").glob("pgd_linf_8-255-*.json")
    assert (run / "test" / "pgd_linf_8-255.json").read_bytes() == before
    old, again = EvaluationResult.load(run / "test" / "pgd_linf_8-255.json"), EvaluationResult.load(new)
    assert again.outcomes.tolist() == old.outcomes.tolist()
    assert again.fingerprints["model"] == old.fingerprints["model"]


def test_its_status_is_shown(run, capsys):
    assert status("status", run) == 0
    shown = capsys.readouterr().out
    assert all(part in shown for part in ("previous: stopped", "step 6 of 8", "robust 68.2 %"))


def test_its_evidence_is_refused_in_one_line(run, capsys):
    evidence = run / "test" / "pgd_linf_8-255.receipt.safetensors"
    assert status("verify", evidence, "--ckpt", CHECKPOINTS / "stopped.ckpt") == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "was written by an earlier version. Run `lightning-paf test`" in message
