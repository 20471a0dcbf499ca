"""Recipes are found by short names from any directory."""

import pytest

from lightning_paf import recipes
from lightning_paf.__main__ import main
from lightning_paf.cli.training import train
from lightning_paf.recipes import FOLDER, find, resolved


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["trainer/gpu1", "gpu1", "configs/trainer/gpu1.yaml", "./configs/trainer/gpu1.yaml"])
def test_a_recipe_has_short_and_long_names(name):
    assert find(name, "trainer") == FOLDER / "trainer" / "gpu1.yaml"


def test_a_stem_alone_belongs_to_its_kind():
    assert find("pssilu", "trainer") is None
    assert find("pssilu") is None


def test_words_of_a_command_line_become_paths():
    words = ["fit", "-c", "paper/resnet18_linf", "--trainer=gpu1", "--model.activation", "relu", "--run", "runs/a"]
    found = resolved(words)
    assert found[2] == str(FOLDER / "paper" / "resnet18_linf.yaml")
    assert found[3] == f"--trainer={FOLDER / 'trainer' / 'gpu1.yaml'}"
    assert found[5] == str(FOLDER / "activation" / "relu.yaml")
    assert found[6:] == words[6:]


def test_existing_files_take_precedence(tmp_path):
    own = tmp_path / "configs" / "trainer" / "gpu1.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("accelerator: cpu")
    words = ["fit", "--trainer", "configs/trainer/gpu1.yaml"]
    assert resolved(words) == words


@pytest.mark.parametrize(
    "words",
    [
        ["--model.activation", "ReLU"],
        ["--model.attack", '{"class_path": "PGD"}'],
        ["--trainer", "max_epochs: 3"],
        ["-c"],
    ],
)
def test_other_words_are_unchanged(words):
    assert resolved(words) == words


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["-c", "configs/paper/resnet18_lnf.yaml"], "paper/resnet18_linf"),
        (["--trainer", "gpu.yaml"], "gpu1"),
        (["--model.net=net/resnet81.yaml"], "resnet18"),
        (["--data", "mnist"], "--data.dataset npz"),
        (["--data", "cifar1"], "cifar10"),
        (["--trainer=gpu"], "gpu1"),
        (["--model.lr", "3", "-c", "nowhere.yaml"], "lightning-paf recipes"),
    ],
)
def test_a_mistyped_name_lists_the_near_ones(words, near, capsys):
    assert main(["fit", *words]) == 1
    printed = capsys.readouterr().err
    assert "must be a file or the name of a recipe" in printed
    assert near in printed


def test_a_whole_run_is_built_in_an_empty_directory():
    words = ["-c", "demo/digits", "--trainer", "cpu", "--model.activation", "relu", "--model.attack", "pgd10_linf"]
    cli = train([*words, "--run", "run"], run=False)
    assert cli.model.attack.steps == 10


def test_the_command_lists_names_and_first_lines(capsys):
    assert main(["recipes", "paper/"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * len(recipes.names("paper/")) > 0
    assert "paper/resnet18_linf" in lines
    assert max(map(len, lines)) <= 124
    assert main(["recipes", "papper"]) == 1


def test_every_recipe_begins_with_a_line_about_it():
    for name in recipes.names():
        assert (FOLDER / f"{name}.yaml").read_text().startswith("# "), name
