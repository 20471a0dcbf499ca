"""The scripts and notebooks in `docs/` run."""

import runpy
import sys

import pytest
from helpers.fakes import CONFIGS

EXAMPLES = CONFIGS.parent / "docs" / "examples"


@pytest.mark.slow
def test_the_sweep_runs_two_trials(tmp_path, monkeypatch, capsys):
    pytest.importorskip("optuna")
    script = EXAMPLES / "optuna_sweep.py"
    assert len(script.read_text().splitlines()) <= 40
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(script), "2"])
    study = runpy.run_path(str(script), run_name="__main__")["study"]
    assert len(study.trials) == 2
    assert {*study.best_params} == {"lr", "step_size"}
    assert study.best_value > 0.2, "above chance"
    assert "best of 2 trials" in capsys.readouterr().out


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path):
    pytest.importorskip("furo")
    from sphinx.cmd.build import main

    docs, out = str(EXAMPLES.parent), str(tmp_path / "site")
    assert main(["--fail-on-warning", "-q", "-b", "dummy", "-d", str(tmp_path), docs, out]) == 0  # all but the pages
