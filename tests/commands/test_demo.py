"""The demonstration from the first command to the table, with a small network and few images."""

import contextlib
import io
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.short_demo import write_short_demo, write_short_generator
from rich.console import Console

from lightning_paf.__main__ import main
from lightning_paf.commands import demo
from lightning_paf.evaluation import EvaluationResult, Outcome
from lightning_paf.evaluation.statistics import exact_accuracy


class InThisProcess:
    """`subprocess.Popen` of `python -m lightning_paf`, but in this process."""

    def __init__(self, command, stdout, **settings):
        with contextlib.redirect_stdout(stdout):
            self.returncode = main(command[3:])

    def poll(self):
        return self.returncode


@pytest.mark.slow
def test_the_demo_ends_with_a_table(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(demo.subprocess, "Popen", InThisProcess)
    monkeypatch.setattr(demo, "GENERATOR_EPOCHS", 1)
    monkeypatch.setattr(demo, "ACTIVATIONS", {"ReLU": "relu", "PSSiLU": "pssilu"})
    recipes = ["--config", str(write_short_demo(tmp_path)), "--generator", str(write_short_generator(tmp_path))]
    out = tmp_path / "demo"
    assert main(["demo", *recipes, "--out", str(out), "--count", "60", "--epochs", "1"]) == 0
    printed = capfd.readouterr().out
    rows = json.loads((out / "summary.json").read_text())
    assert [row["activation"] for row in rows] == ["ReLU", "PSSiLU"]
    assert rows[0]["alpha"] == "-"
    assert float(rows[1]["alpha"]) > 0
    assert "AutoAttack, PSSiLU minus ReLU, same 20 images" in printed
    assert "strong, PSSiLU minus ReLU, same 20 images" in printed
    assert "under standard and strong AutoAttack" in printed or "Strong AutoAttack changes" in printed
    assert all(float(row["strong"].split()[0]) <= float(row["autoattack"].split()[0]) for row in rows)
    assert len(np.load(out / "pool.npz")["label"]) == 60
    assert (out / "pool.png").is_file()
    assert re.search(
        r"FID to the training images, by the features of relu: diffusion model \d+\.\d\d, Gaussian m", printed
    )
    for name in ("relu", "pssilu"):
        assert (out / name / "config.yaml").is_file()
        assert (out / name / "activation.png").is_file()
        assert (out / name / "metrics.csv").is_file()
        result = EvaluationResult.load(out / name / "test" / "autoattack_linf_0.9.json")
        assert result.evaluated == 20
        assert result.attack["attacks"] == ["apgd-ce", "apgd-t", "fab-t", "square", "smoothed-pgd"]


@pytest.mark.parametrize(("option", "recipe"), [("--config", "demo/digits"), ("--generator", "diffusion/digits")])
def test_an_unknown_recipe_is_refused_before_anything_is_written(option, recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", option, recipe[:-1]]) == 1
    assert f"Did you mean {recipe}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "it began before the recipe was found"


@pytest.mark.parametrize("correct", [171, 180])
def test_the_table_fits_80_columns_without_cut_words(correct):
    accuracy, outcomes = (
        exact_accuracy(correct, 180),
        np.repeat([Outcome.ROBUST, Outcome.FOOLED], [correct, 180 - correct]),
    )
    robust = {"outcomes": outcomes, "robust": accuracy, "robust_before": lambda label: outcomes == Outcome.ROBUST}
    result = SimpleNamespace(attack={"eps": "0.25"}, evaluated=180, clean=accuracy, **robust)
    variants = [
        demo.Variant(name, result, result, {"alpha": 1.0, "beta": 2.5}, 61.0, 73.0) for name in demo.ACTIVATIONS
    ]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(demo._table(variants))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert [len(line.split(str(accuracy))) - 1 for line in lines if "%" in line] == [3, 3, 3, 3]
    assert all(
        any(word in line for line in lines) for word in ("ReLU", "PSSiLU", "AutoAttack", "strong", "PGD-20", "train s")
    )


def test_the_order_of_activations_is_that_of_both_versions(tmp_path, capsys):
    """One image, which only strong finds for SiLU, is the difference to PSSiLU."""

    def variant(name: str, standard: list[bool], strong: list[bool]) -> demo.Variant:
        outcomes = np.where(strong, Outcome.ROBUST, Outcome.FOOLED)
        robust = {"outcomes": outcomes, "robust_before": {"smoothed-pgd": np.array(standard)}.get}
        accuracy = exact_accuracy(3, 3)
        result = SimpleNamespace(attack={"eps": "0.25"}, evaluated=3, clean=accuracy, robust=accuracy, **robust)
        return demo.Variant(name, result, result, {}, 1.0, 1.0)

    variants = [
        variant("ReLU", [True] * 3, [True] * 3),
        variant("SiLU", [True, True, False], [True, False, False]),
        variant("PSSiLU", [True, True, False], [True, True, False]),
    ]
    assert [variants[1].summary()[name].split()[0] for name in ("autoattack", "strong")] == ["66.7", "33.3"]
    demo._show(variants, tmp_path)
    assert "Strong AutoAttack changes the order of SiLU and PSSiLU." in capsys.readouterr().out


def test_an_existing_demo_is_kept(tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo-2").mkdir()
    assert demo._free(tmp_path / "demo") == tmp_path / "demo-3"
