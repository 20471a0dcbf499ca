"""The scripts and notebooks in `docs/` run."""

import json
import logging
import runpy
import sys
import warnings

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
@pytest.mark.parametrize("path", sorted((EXAMPLES.parent / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_the_cells_of_a_notebook_run(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    names = {}
    logger = logging.getLogger("lightning.pytorch")
    monkeypatch.setattr(logger, "level", logger.level)  # which a notebook changes
    with warnings.catch_warnings():
        for cell in cells:
            exec(compile("".join(cell["source"]), path.name, "exec"), names)
    logger.manager._clear_cache()
    printed = capsys.readouterr().out
    assert "%" in printed
    assert any(output["output_type"] == "display_data" for cell in cells for output in cell["outputs"]), "executed"


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path):
    pytest.importorskip("furo")
    from sphinx.cmd.build import main

    docs, out = str(EXAMPLES.parent), str(tmp_path / "site")
    assert main(["--fail-on-warning", "-q", "-b", "dummy", "-d", str(tmp_path), docs, out]) == 0  # all but the pages
