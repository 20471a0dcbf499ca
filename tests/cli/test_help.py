"""Help pages, usage, shell completion, and answers to unknown and removed commands."""

import inspect
import re
import subprocess
import sys

import pytest
from helpers.cli_runs import status

import lightning_paf
from lightning_paf.__main__ import REMOVED, TRAINING, _commands
from lightning_paf.attacks import PGD, AutoAttack
from lightning_paf.callbacks import RobustEval
from lightning_paf.cli.parser import HelpfulParser


def python(*words: str) -> subprocess.CompletedProcess:
    """Run a new interpreter."""
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=60)


def test_the_help_imports_no_large_library():
    code = "import sys; from lightning_paf.__main__ import main; main(['--help']); print(*sorted(sys.modules))"
    output = python("-c", code).stdout
    for command in ("fit", "validate", "test", "predict", "demo", "synthesize"):
        assert f"\n  {command} " in output
    assert not {"torch", "lightning", "numpy", "jsonargparse"} & set(output.split("\n")[-2].split())


def test_the_package_is_a_command():
    assert python("-m", "lightning_paf", "--version").stdout == f"{lightning_paf.__version__}\n"
    unknown = python("-m", "lightning_paf", "tset")
    assert unknown.returncode == 2
    assert "unknown command 'tset'. Did you mean test? Known: fit, validate, test, predict, analyze" in unknown.stderr


@pytest.mark.parametrize("words", [(), ("-h",), ("--help",), ("help",)])
def test_the_usage_fits_and_names_every_command_once(words, capsys):
    assert status(*words) == 0
    usage = capsys.readouterr().out
    assert "lightning-paf COMMAND --help" in usage
    assert max(map(len, usage.splitlines())) <= 80
    assert sorted(re.findall(r"^  ([a-z][a-z-]*)  ", usage, re.MULTILINE)) == sorted([*TRAINING, *_commands()])
    for group in ("train", "evaluate", "analyze", "tools"):
        assert f"\n{group}:\n  " in usage


def test_an_unknown_command_without_a_similar_one(capsys):
    assert status("xyz") == 2
    error = capsys.readouterr().err
    assert "'xyz'" in error
    assert "Did you mean" not in error


@pytest.mark.parametrize("command", REMOVED)
def test_a_removed_command_names_its_replacement(command, capsys):
    assert status(command, "write", "--help") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"lightning-paf: {command} was removed. ")


OF_CLASSES = {
    "--model.attack.eps": PGD,
    "--autoattack.attack.eps": AutoAttack,
    "--autoattack.test_examples": RobustEval,
}


@pytest.mark.parametrize("command", TRAINING)
def test_the_help_page_names_options_of_the_parser(command, capsys):
    assert status(command, "-c", "nowhere.yaml", "-h") == 0
    page = capsys.readouterr().out
    assert max(map(len, page.splitlines())) <= 80
    assert len(page.splitlines()) <= 60
    assert status(command, "--help.full") == 0
    full = capsys.readouterr().out
    options = set(re.findall(r"(?<= )--\w[\w.-]*", page)) - {"--help.full", "--print_config"}
    assert all(f"{option} " in full or f"{option}]" in full for option in options - OF_CLASSES.keys())
    for option in options & OF_CLASSES.keys():
        assert option.rpartition(".")[2] in inspect.signature(OF_CLASSES[option]).parameters


def test_the_full_help_of_a_command_builds_one_parser(monkeypatch, capsys):
    parsers, add = [], HelpfulParser.add_lightning_class_args
    monkeypatch.setattr(
        HelpfulParser,
        "add_lightning_class_args",
        lambda self, *args, **kw: parsers.append(args) or add(self, *args, **kw),
    )
    assert status("fit", "--help-full") == 0
    assert [key for _, key in parsers] == ["trainer", "model", "data"]
    output = " ".join(capsys.readouterr().out.split())
    for text in (
        "Parameters with weight decay",  # RobustModule
        "Fraction of real images in a batch",  # RobustDataModule
        "Run folder: config, metrics",  # PafCLI
    ):
        assert text in output


def test_the_help_of_a_class(capsys):
    assert status("fit", "--model.attack.help", "PGD") == 0
    assert "Largest perturbation, in units of pixels in [0, 1]" in " ".join(capsys.readouterr().out.split())


def test_a_tool_has_no_options_of_the_trainer(capsys):
    assert status("synthesize", "--help") == 0
    assert "--trainer" not in capsys.readouterr().out


def test_the_shell_completes_options_and_recipes(tmp_path, capsys):
    assert status("--print_shtab", "bash") == 0
    script = capsys.readouterr().out
    assert status("fit", "--print_shtab", "bash") == 0
    assert capsys.readouterr().out == script
    (tmp_path / "complete.sh").write_text(script)
    typed = "COMP_WORDS=(lightning-paf fit {}); COMP_CWORD={}; _shtab_lightning_paf; echo ${{COMPREPLY[@]}}"
    lines = ["--model.obj", "--model.attack pgd10_l", "--model.activation pss"]
    commands = "; ".join(typed.format(line, 1 + len(line.split())) for line in lines)
    done = subprocess.run(
        ["bash", "-c", f"source {tmp_path}/complete.sh; {commands}"], capture_output=True, text=True, check=False
    )
    options, attacks, activations = done.stdout.splitlines()
    assert "--model.objective" in options.split()
    assert attacks.split() == ["pgd10_l2", "pgd10_linf", "pgd10_linf_paf", "pgd10_linf_train"]
    assert activations.split() == ["pssilu", "pssilufixed"]


def test_an_unknown_shell_is_refused(capsys):
    assert status("--print_shtab", "ksh") == 1
    assert "--print_shtab must be one of bash" in capsys.readouterr().err
