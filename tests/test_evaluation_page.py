"""The example of the page on evaluation runs in its order, on a tiny network and few images."""

import re
import shlex

import pytest
from helpers.cli_runs import status
from helpers.fakes import CONFIGS
from helpers.short_demo import write_short_demo

from lightning_paf.commands import reproduce

PAGE = (CONFIGS.parent / "docs" / "evaluation.md").read_text()
SECTION = PAGE.split("\n## An example\n")[1].split("\n## ")[0]
COMMANDS = [shlex.split(line)[1:] for line in re.findall(r"^lightning-paf .*$", SECTION, re.M)]
QUICK = {
    "fit": "--trainer.max_epochs 1 --trainer.logger false",
    "test": "--trainer.logger false --autoattack.attack.version custom --autoattack.attack.attacks [apgd-ce] "
    "--autoattack.attack.eps 0.25",
    "curve": "--examples 4 --steps 2 --grid 0,0.25",
    "export": "--formats safetensors --examples 4",
}
"""Options that shorten a command."""


@pytest.mark.slow
def test_the_commands_of_the_example_run_in_their_order(tmp_path, monkeypatch, capsys):
    """The trainings of `reproduce` are replaced; tests/commands/test_reproduce.py runs some."""
    write_short_demo(tmp_path)
    monkeypatch.chdir(tmp_path)
    tasks = []
    monkeypatch.setattr(reproduce, "_perform", lambda given, *_: tasks.extend(given))
    monkeypatch.setattr(reproduce, "_conclude", lambda *_: None)
    for words in COMMANDS:
        assert status(*words, *shlex.split(QUICK.get(words[0], ""))) == 0, (words, capsys.readouterr().err)
    assert {words[0] for words in COMMANDS} >= {*QUICK, "verify", "report", "compare", "status"}
    assert {task.experiment for task in tasks} == {"trades"}
    rows = (tmp_path / "compared.csv").read_text().splitlines()
    assert len(rows) >= 3
    assert (tmp_path / "compared.png").stat().st_size > 1000
