"""The commands, the code and the links of the README."""

import re
import shlex
from contextlib import redirect_stdout

import pytest
import torch
from helpers.fakes import CONFIGS
from helpers.markdown import target_exists

from lightning_paf.__main__ import TRAINING, main

ROOT = CONFIGS.parent
README = (ROOT / "README.md").read_text()
SHELL = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL))
COMMANDS = [line for line in SHELL.replace("\\\n", " ").splitlines() if line.startswith("lightning-paf")]
TOOLS = [c for c in COMMANDS if c.split()[1] not in TRAINING]
COMMANDS = [c for c in COMMANDS if c not in TOOLS]


def test_the_readme_is_short_and_has_commands():
    assert len(README.splitlines()) <= 120
    assert len(COMMANDS) >= 6


@pytest.mark.parametrize("command", [c for c in COMMANDS if "runs/" not in c or " -c configs/" in c])
def test_training_commands_are_accepted(command, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stopped:
        main([*shlex.split(command)[1:], "--print_config"])
    assert stopped.value.code == 0
    assert "class_path" in capsys.readouterr().out


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with the configuration of the README's first command and checkpoints without weights."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "checkpoints").mkdir()
    with pytest.MonkeyPatch.context() as patch, (folder / "config.yaml").open("w") as config, redirect_stdout(config):
        patch.chdir(ROOT)
        with pytest.raises(SystemExit, match="0"):
            main(["fit", "-c", "configs/paper/resnet18_linf.yaml", "--print_config"])
    for name in ("best", "last", "imported"):
        content = {"state_dict": {}, "pytorch-lightning_version": "2.6.0"}
        torch.save(content, folder / "checkpoints" / f"{name}.ckpt")
    return folder


@pytest.mark.parametrize("command", [c for c in COMMANDS if "--ckpt_path" in c])
def test_commands_on_a_run_are_accepted(command, run, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stopped:
        main([*shlex.split(re.sub(r" runs/\w+/", f" {run}/", command))[1:], "--print_config"])
    assert stopped.value.code == 0
    assert "class_path" in capsys.readouterr().out


@pytest.mark.parametrize("command", TOOLS)
def test_commands_have_the_options(command, capsys):
    words = shlex.split(command)[1:]
    names = words[:2] if words[0] == "analyze" else words[:1]
    with pytest.raises(SystemExit) as stopped:
        main([*names, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    ours = [word for word in words if word.startswith("--") and not word.startswith(("--data.", "--model."))]
    assert not [word for word in ours if word not in text]


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_python_examples_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README", "exec"), {})


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make (\w+)", SHELL, re.MULTILINE)) <= targets


def test_linked_files_and_headings_exist():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links
    assert not [link for link in links if not target_exists(ROOT / "README.md", link)]
