"""The examples in the documentation run, and the files that it names exist."""

import re
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import yaml
from helpers.fakes import CONFIGS
from helpers.recipe_headers import commands, cost_in_header, cost_line, costs

from lightning_paf.cli.training import train

ROOT = CONFIGS.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
EXTENDING = (ROOT / "docs" / "extending.md").read_text()
# The parser refuses a bare name that two classes have, and who has followed the page has one in the package.
for defined in re.findall(r"^class (\w+)", EXTENDING, re.M):
    EXTENDING = re.sub(rf"(?<!nn\.)\b{defined}\b", f"{defined}Example", EXTENDING)
SECTIONS = dict(part.split("\n", 1) for part in EXTENDING.split("\n## ")[1:])
EXAMPLES = {
    title: "\n\n".join(blocks)
    for title, text in SECTIONS.items()
    if (blocks := re.findall(r"^```python\n(.*?)^```", text, re.S | re.M))
}
MADE_BY_THE_READER = "/half"  # files of the whole method: half_and_half.py, half-and-half.json
IMPORTED = ["An activation", "An attack", "An objective", "A network", "A schedule", "An augmentation", "A callback"]


def test_every_extension_point_has_an_example():
    assert SECTIONS.keys() - EXAMPLES.keys() == {"A recipe"}
    assert set(IMPORTED) <= EXAMPLES.keys()


@pytest.mark.parametrize("section", EXAMPLES)
def test_an_example_runs(section):
    exec(compile(EXAMPLES[section], section, "exec"), {"__name__": "my_project", "__doc__": ""})


def test_the_examples_are_found_by_their_import_path(tmp_path, monkeypatch):
    (tmp_path / "my_project.py").write_text("\n\n".join(EXAMPLES[section] for section in IMPORTED))
    monkeypatch.syspath_prepend(tmp_path)
    named = {
        "model": {
            "net": "my_project.PerceptronExample",
            "activation": {"class_path": "my_project.HalfSiLUExample", "init_args": {"alpha": 4.0}},
            "attack": "my_project.RandomSearchExample",
            "objective": "my_project.HalfAndHalfExample",
            "schedule": "my_project.LinearExample",
        },
        "data": {"dataset": "digits", "real_fraction": 1.0, "augment": "my_project.CutoutExample"},
        "trainer": {"accelerator": "cpu"},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(named))
    try:
        cli = train(
            ["-c", str(tmp_path / "mine.yaml"), "--trainer.callbacks+=my_project.StopWhenRobustExample"], run=False
        )
    finally:
        sys.modules.pop("my_project", None)
    alphas = [value for key, value in cli.model.named_parameters() if key.endswith(".alpha")]
    assert torch.equal(torch.stack(list(alphas)), torch.tensor([[4.0]]))
    assert type(cli.model.objective).__name__ == "HalfAndHalfExample"
    assert "StopWhenRobustExample" in {type(callback).__name__ for callback in cli.trainer.callbacks}


@pytest.mark.parametrize("document", [path for path in DOCS if path.name != "extending.md"], ids=lambda path: path.name)
def test_python_blocks_of_other_documents_run(document):
    """All blocks of a document follow one another."""
    blocks = re.findall(r"^```python\n(.*?)^```", document.read_text(), re.S | re.M)
    exec(compile("\n\n".join(blocks), document.name, "exec"), {})


CARDS = re.split(r"^##+ ", (ROOT / "docs" / "methods.md").read_text(), flags=re.M)[1:]


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.split("\n", 1)[0])
def test_a_card_has_what_the_page_promises(card):
    assert "```bash\nlightning-paf " in card
    assert re.search(r"[Pp]ublished", card)
    assert re.search("[Dd]epartures|[Ww]here (the )?sources? (is|are) silent|reconstruction", card)


def indented(language: str) -> str:
    """The block inside the list of "A whole method"."""
    block = re.search(rf"^   ```{language}\n(.*?)^   ```", SECTIONS["An objective"], re.S | re.M)
    return textwrap.dedent(block[1])


def test_the_whole_method_has_a_study_that_names_its_arms():
    module = {}
    exec(compile(indented("python"), "half_and_half", "exec"), module)
    assert {arm.name for arm in module["STUDY"].arms} == {"pgd", "half"}


def test_the_whole_method_has_a_recipe_that_builds_and_a_header_that_is_true(tmp_path, monkeypatch):
    written = re.search(r"^```python\n(.*?)^```", SECTIONS["An objective"], re.S | re.M)
    (tmp_path / "my_project.py").write_text(written[1])  # the first block alone
    monkeypatch.syspath_prepend(tmp_path)
    recipe = (
        indented("yaml")
        .replace("../", f"{ROOT}/configs/")
        .replace("HalfAndHalfExample", "my_project.HalfAndHalfExample")
    )
    (tmp_path / "recipe.yaml").write_text(recipe)
    try:
        cli = train(["-c", str(tmp_path / "recipe.yaml"), "--trainer.accelerator", "cpu"], run=False)
    finally:
        sys.modules.pop("my_project", None)
    assert cli.model.objective.clean_weight == 0.5
    assert [words[0] for words in commands(recipe)] == ["fit", "test"]
    spent = costs(cli.model.to("meta"), cli.datamodule, cli.trainer.max_epochs)
    assert cost_in_header(recipe) == pytest.approx(spent, rel=0.1), f"it should say: {cost_line(*spent)}"


@pytest.mark.parametrize("document", DOCS, ids=lambda path: path.name)
def test_files_that_a_document_names_exist(document):
    text = document.read_text()
    named = set(re.findall(r"\b(?:configs|lightning_paf|tests|docs)/[\w/.]*\w/?", text))
    named |= {str(Path("docs") / link) for link in re.findall(r"\]\(([\w/.]+)\)", text)}
    missing = [path for path in sorted(named) if MADE_BY_THE_READER not in path and not (ROOT / path).exists()]
    assert not missing


@pytest.mark.parametrize("document", DOCS, ids=lambda path: path.name)
def test_headings_that_a_document_links_to_exist(document):
    text = document.read_text()
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors
