"""Every study: its arms are accepted by the real parser and build, its files are where they belong."""

import json
import re
from pathlib import Path

import pytest
from helpers.cli_runs import built
from helpers.fakes import root_without_runs

from lightning_paf.commands import reproduce
from lightning_paf.experiments import find_study, study_names
from lightning_paf.experiments.page import page, summary
from lightning_paf.experiments.run import Task, _fit_words

ROOT = Path(__file__).parent.parent.parent
ARMS = [(name, arm.name) for name in study_names() for arm in find_study(name).arms]


@pytest.mark.parametrize(("study", "name"), ARMS, ids=[" ".join(pair) for pair in ARMS])
def test_every_arm_builds(study, name, tmp_path, monkeypatch):
    monkeypatch.chdir(root_without_runs(tmp_path))
    found = find_study(study)
    arm = next(arm for arm in found.arms if arm.name == name)
    task = Task(study, name, 0, tmp_path, Path("configs/studies/digits.yaml"), (), 8)
    words = _fit_words(task, found, arm)
    assert re.search(r"\{\w+\}", " ".join(words)) is None, "a placeholder names no arm"
    if not arm.before and "--model.init" not in words:  # others need what earlier arms have trained
        built(*words[1:])


@pytest.mark.parametrize("name", study_names())
def test_an_arm_needs_only_arms_before_it(name):
    seen = set()
    for arm in find_study(name).arms:
        assert {*arm.after} <= seen
        for word in (*arm.options, *(word for command in arm.before for word in command), *arm.test_options):
            assert set(re.findall(r"\{([\w-]+)\}", word)) <= seen | {"folder"}
        seen.add(arm.name)


RESULTS = ROOT / "docs" / "results" / "methods"


def test_the_page_is_that_of_the_results():
    assert RESULTS.with_suffix(".md").read_text() == page(RESULTS) + "\n"


@pytest.mark.parametrize("name", sorted(path.stem for path in RESULTS.glob("*.json")))
def test_the_cards_say_what_came_of_it(name):
    found = json.loads((RESULTS / f"{name}.json").read_text())
    cards = " ".join((ROOT / "docs" / "methods.md").read_text().split())
    assert summary(found) in cards
    study = find_study(name)
    assert list(found["arms"]) == [arm.name for arm in study.arms], "run it again"
    assert [claim["text"] for claim in found["claims"]] == [claim.text for claim in study.claims], "run it again"
    assert (found["plain"], found["note"]) == (list(study.plain), study.note), "run it again"


def test_an_unknown_study_is_refused_with_the_nearest(capsys):
    with pytest.raises(ValueError, match=r"no study 'madri'\. Did you mean madry"):
        reproduce.main(["madri"])


def test_the_list_names_every_claim(capsys):
    assert reproduce.main(["--list"]) == 0
    printed = capsys.readouterr().out
    assert all(claim.text in printed for name in study_names() for claim in find_study(name).claims)
