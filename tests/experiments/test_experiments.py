"""Every experiment: its variants parse and build, and its results are up to date."""

import json
import re
from pathlib import Path

import pytest
from helpers.cli_runs import built
from helpers.fakes import root_without_runs

from lightning_paf.commands import reproduce
from lightning_paf.experiments import experiment_names, find_experiment
from lightning_paf.experiments.page import page, summary
from lightning_paf.experiments.run import Task, _fit_words

ROOT = Path(__file__).parent.parent.parent
VARIANTS = [(name, variant.name) for name in experiment_names() for variant in find_experiment(name).variants]


@pytest.mark.parametrize(("experiment", "name"), VARIANTS, ids=[" ".join(pair) for pair in VARIANTS])
def test_every_variant_builds(experiment, name, tmp_path, monkeypatch):
    monkeypatch.chdir(root_without_runs(tmp_path))
    found = find_experiment(experiment)
    variant = next(variant for variant in found.variants if variant.name == name)
    task = Task(experiment, name, 0, tmp_path, Path("configs/experiments/digits.yaml"), (), 8)
    words = _fit_words(task, found, variant)
    assert re.search(r"\{\w+\}", " ".join(words)) is None, "a placeholder names no variant"
    if not variant.before and "--model.init" not in words:  # others need what earlier variants have trained
        built(*words[1:])


@pytest.mark.parametrize("name", experiment_names())
def test_a_variant_needs_only_earlier_variants(name):
    seen = set()
    for variant in find_experiment(name).variants:
        assert {*variant.after} <= seen
        for word in (
            *variant.options,
            *(word for command in variant.before for word in command),
            *variant.test_options,
        ):
            assert set(re.findall(r"\{([\w-]+)\}", word)) <= seen | {"folder"}
        seen.add(variant.name)


RESULTS = ROOT / "docs" / "results" / "methods"


def test_the_page_is_that_of_the_results():
    assert RESULTS.with_suffix(".md").read_text() == page(RESULTS) + "\n"


@pytest.mark.parametrize("name", sorted(path.stem for path in RESULTS.glob("*.json")))
def test_the_pages_of_methods_quote_the_results(name):
    found = json.loads((RESULTS / f"{name}.json").read_text())
    page_of_method = (ROOT / "docs" / "methods" / f"{name.replace('-', '_')}.md").read_text()
    assert summary(found) in " ".join(page_of_method.split())
    experiment = find_experiment(name)
    assert list(found["variants"]) == [variant.name for variant in experiment.variants], "run it again"
    assert [claim["text"] for claim in found["claims"]] == [claim.text for claim in experiment.claims], "run it again"
    assert (found["plain"], found["note"]) == (list(experiment.plain), experiment.note), "run it again"


def test_an_unknown_study_is_refused_with_the_nearest(capsys):
    with pytest.raises(ValueError, match=r"no experiment 'madri'\. Did you mean madry"):
        reproduce.main(["madri"])


def test_the_list_names_every_claim(capsys):
    assert reproduce.main(["--list"]) == 0
    printed = capsys.readouterr().out
    assert all(claim.text in printed for name in experiment_names() for claim in find_experiment(name).claims)
