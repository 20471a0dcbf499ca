"""The examples in the documents run, and links and named files exist."""

import json
import re
import sys
import textwrap
from importlib import import_module

import pytest
import torch
import yaml
from helpers.fakes import CONFIGS
from helpers.markdown import target_exists
from helpers.recipe_headers import commands, cost_in_header, cost_line, costs

from lightning_paf.cli.training import train

ROOT = CONFIGS.parent
DOCS = sorted((ROOT / "docs").rglob("*.md"))
OTHERS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docker/README.md")]
WITH_PYTHON = [path for path in DOCS if path.name != "extending.md" and "```python" in path.read_text()]
EXTENDING = (ROOT / "docs" / "extending.md").read_text()
# The parser refuses a bare name that two classes have, and a reader of the page can have added one to the package.
for defined in re.findall(r"^class (\w+)", EXTENDING, re.M):
    EXTENDING = re.sub(rf"(?<!nn\.)\b{defined}\b", f"{defined}Example", EXTENDING)
SECTIONS = dict(part.split("\n", 1) for part in EXTENDING.split("\n## ")[1:])
EXAMPLES = {
    title: "\n\n".join(blocks)
    for title, text in SECTIONS.items()
    if (blocks := re.findall(r"^```python\n(.*?)^```", text, re.S | re.M))
}
MADE_BY_THE_READER = re.compile(r"/half|/[A-Z]+\.")  # files of the example method; placeholders such as NAME.yaml
IMPORTED = ["An activation", "An attack", "An objective", "A network", "A schedule", "An augmentation", "A callback"]


def test_every_extension_point_has_an_example():
    assert SECTIONS.keys() - EXAMPLES.keys() == {"A recipe"}
    assert set(IMPORTED) <= EXAMPLES.keys()


@pytest.mark.parametrize("section", EXAMPLES)
def test_an_example_runs(section, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[section], section, "exec"), {"__name__": "my_project", "__doc__": ""})


@pytest.fixture
def write_module(tmp_path, monkeypatch):
    """Writes `my_project.py`, which can be imported in this test."""
    monkeypatch.syspath_prepend(tmp_path)
    yield (tmp_path / "my_project.py").write_text
    sys.modules.pop("my_project", None)


def test_the_examples_are_found_by_their_import_path(write_module, tmp_path):
    write_module("\n\n".join(EXAMPLES[section] for section in IMPORTED))
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
    cli = train(["-c", str(tmp_path / "mine.yaml"), "--trainer.callbacks+=my_project.StopWhenRobustExample"], run=False)
    alphas = [value for key, value in cli.model.named_parameters() if key.endswith(".alpha")]
    assert torch.equal(torch.stack(list(alphas)), torch.tensor([[4.0]]))
    assert type(cli.model.objective).__name__ == "HalfAndHalfExample"
    assert "StopWhenRobustExample" in {type(callback).__name__ for callback in cli.trainer.callbacks}


@pytest.mark.parametrize("document", WITH_PYTHON, ids=lambda path: path.name)
def test_python_blocks_of_other_documents_run(document):
    """The blocks of a document run in one namespace, in their order."""
    blocks = re.findall(r"^```python\n(.*?)^```", document.read_text(), re.S | re.M)
    exec(compile("\n\n".join(blocks), document.name, "exec"), {})


METHODS = ROOT / "docs" / "methods"
PAGES = [path for path in sorted(METHODS.glob("*.md")) if path.name != "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_a_page_of_a_method_has_recipe_published_numbers_and_differences(page):
    text = page.read_text()
    assert re.search(r"`configs/[\w/]+\.yaml`|^lightning-paf ", text, re.M)
    assert re.search(r"[Pp]ublished", text)
    assert re.search(r"^## (Differences from|Choices not)", text, re.M)
    assert f"({page.name})" in (METHODS / "README.md").read_text()


def test_every_recipe_of_a_method_has_a_page():
    text = (METHODS / "README.md").read_text()
    assert not [path.name for path in (CONFIGS / "methods").glob("*.yaml") if f"`{path.name}`" not in text]


def indented(language: str) -> str:
    """Test the block inside the list of "A complete method"."""
    block = re.search(rf"^   ```{language}\n(.*?)^   ```", SECTIONS["An objective"], re.S | re.M)
    return textwrap.dedent(block[1])


def test_the_example_method_has_an_experiment_with_its_variants():
    module = {}
    exec(compile(indented("python"), "half_and_half", "exec"), module)
    assert {variant.name for variant in module["EXPERIMENT"].variants} == {"pgd", "half"}


def test_the_example_method_has_a_recipe_that_builds_with_a_correct_header(write_module, tmp_path):
    write_module(re.search(r"^```python\n(.*?)^```", SECTIONS["An objective"], re.S | re.M)[1])
    recipe = (
        indented("yaml")
        .replace("../", f"{ROOT}/configs/")
        .replace("HalfAndHalfExample", "my_project.HalfAndHalfExample")
    )
    (tmp_path / "recipe.yaml").write_text(recipe)
    cli = train(["-c", str(tmp_path / "recipe.yaml"), "--trainer.accelerator", "cpu"], run=False)
    assert cli.model.objective.clean_weight == 0.5
    assert [words[0] for words in commands(recipe)] == ["fit", "test"]
    spent = costs(cli.model.to("meta"), cli.datamodule, cli.trainer.max_epochs)
    assert cost_in_header(recipe) == pytest.approx(spent, rel=0.1), f"expected: {cost_line(*spent)}"


@pytest.mark.parametrize("document", [*DOCS, *OTHERS], ids=lambda path: str(path.relative_to(ROOT)))
def test_named_files_and_linked_headings_exist(document):
    text = re.sub(r"^````markdown.*?^````", "", textwrap.dedent(document.read_text()), flags=re.S | re.M)
    named = set(re.findall(r"(?<![\w/.])(?:configs|lightning_paf|tests|docs)/[\w/.]*\w/?", text))
    missing = [path for path in sorted(named) if not MADE_BY_THE_READER.search(path) and not (ROOT / path).exists()]
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith("http")]
    missing += [link for link in links if not target_exists(document, link)]
    assert not missing


def test_the_architecture_shows_the_imports(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    drawing = import_module("draw_architecture")
    assert json.loads(drawing.DATA.read_text()) == drawing.edges(), "run: python docs/draw_architecture.py"
    documented = re.findall(r"^\| \d+ \| (.*) \|$", (ROOT / "docs" / "architecture.md").read_text(), re.M)
    assert [set(re.findall(r"`(\w+)`", row)) for row in documented] == [set(layer) for layer in drawing.layers()]
