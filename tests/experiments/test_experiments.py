"""All experiments: their variants build, and their results are up to date."""

import json
import re
from pathlib import Path

import pytest
from helpers.cli_runs import built, status
from helpers.fakes import root_without_runs

from lightning_paf.commands import reproduce
from lightning_paf.experiments import experiment_names, find_experiment
from lightning_paf.experiments.page import page, section, summary
from lightning_paf.experiments.run import Task, _filled, _fit_words

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "docs" / "results" / "methods"


def variants():
    """Variants of all experiments that need no earlier training, without those that only differ in numbers."""
    found = {}
    for name in experiment_names():
        experiment = find_experiment(name)
        for variant in experiment.variants:
            words = frozenset(
                re.sub(r"[\d.]+", "0", word) for word in (*experiment.options, *variant.options, *variant.last)
            )
            if not variant.before and "--model.init" not in words:
                found.setdefault(words, (name, variant.name))
    return [pytest.param(*pair, id=" ".join(pair)) for pair in found.values()]


@pytest.mark.parametrize(("experiment", "name"), variants())
def test_every_variant_builds(experiment, name, tmp_path, monkeypatch):
    monkeypatch.chdir(root_without_runs(tmp_path))
    found = find_experiment(experiment)
    variant = next(variant for variant in found.variants if variant.name == name)
    config = found.config if found.measurement else "experiments/digits"
    task = Task(experiment, name, 0, tmp_path, Path(f"configs/{config}.yaml"), (), 8)
    built(*_filled(_fit_words(task, found, variant), task, found)[1:])


COMMANDS = {command for name in experiment_names() for v in find_experiment(name).variants for command in v.before}


@pytest.mark.parametrize("command", sorted(COMMANDS), ids=" ".join)
def test_commands_before_a_training_exist_and_read_its_checkpoint(command, capsys):
    words = [re.sub(r"\{[\w.-]+\}", "nowhere", word) for word in command]
    assert status(*words) == 1
    assert "nowhere, which does not exist" in capsys.readouterr().err


def test_a_variant_needs_only_earlier_variants():
    for name in experiment_names():
        seen = set()
        for variant in find_experiment(name).variants:
            words = [*variant.options, *(word for command in variant.before for word in command), *variant.test_options]
            placeholders = set(re.findall(r"\{([\w.-]+)\}", " ".join(words)))
            assert {*variant.after} | placeholders <= seen | {"folder"}, (name, variant.name)
            seen.add(variant.name)


def test_the_page_is_that_of_the_results():
    assert RESULTS.with_suffix(".md").read_text() == page(RESULTS) + "\n"


@pytest.mark.parametrize("name", ["paf", "certified"])
def test_the_pages_of_real_images_quote_their_results(name):
    folder = RESULTS.parent / name
    lines = section(json.loads((folder / f"{name}.json").read_text()), folder)
    assert "\n".join(lines[2:]) in (RESULTS.parent / f"{name}.md").read_text()


@pytest.mark.parametrize("name", sorted(path.stem for path in RESULTS.glob("*.json")))
def test_the_pages_of_methods_quote_the_results(name):
    found = json.loads((RESULTS / f"{name}.json").read_text())
    pages = [" ".join(path.read_text().split()) for path in (ROOT / "docs" / "methods").glob("*.md")]
    assert any(re.search(rf"reproduce {name}(?![\w-])", text) and summary(found) in text for text in pages)
    experiment = find_experiment(name)
    assert list(found["variants"]) == [variant.name for variant in experiment.variants], (
        f"run `lightning-paf reproduce {name}`"
    )
    assert [claim["text"] for claim in found["claims"]] == [claim.text for claim in experiment.claims], (
        f"run `lightning-paf reproduce {name}`"
    )
    assert (found["plain"], found["note"]) == (list(experiment.plain), experiment.note), (
        f"run `lightning-paf reproduce {name}`"
    )


def test_words_of_a_variant_can_override_those_of_the_data(tmp_path):
    """Without the second source, whose file the command names for all variants."""
    paf = find_experiment("paf")
    real = next(variant for variant in paf.variants if variant.name == "ReLU-real")
    task = Task("paf", real.name, 0, tmp_path, Path("x.yaml"), ("--data.synthetic", "pool.npz"), 8)
    words = _fit_words(task, paf, real)
    assert words.index("null") > words.index("pool.npz")


def test_an_unknown_experiment_is_refused_with_the_closest():
    with pytest.raises(ValueError, match=r"no experiment 'madri'\. Did you mean madry"):
        reproduce.main(["madri"])


def test_the_list_names_every_claim(capsys):
    assert reproduce.main(["--list"]) == 0
    printed = capsys.readouterr().out
    assert all(claim.text in printed for name in experiment_names() for claim in find_experiment(name).claims)
