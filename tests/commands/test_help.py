"""`--help` and unknown options, for every command outside LightningCLI."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.cli_runs import status

from lightning_paf import analysis, commands
from lightning_paf.utils.discovery import modules_with

NAMES = sorted(path.stem for path in Path(commands.__file__).parent.glob("*.py") if path.stem != "__init__")
ANALYSES = modules_with("analyze", Path(analysis.__file__).parent)


def test_help_is_quick_because_nothing_heavy_is_imported():
    code = (
        "import importlib, sys\n"
        f"for name in {NAMES}:\n"
        "  try: importlib.import_module(f'lightning_paf.commands.{name}').main(['--help'])\n"
        "  except SystemExit: print(name, {'torch', 'numpy', 'scipy', 'sklearn', 'lightning'} & set(sys.modules))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert [line for line in output.splitlines() if line.endswith(" set()")] == [f"{name} set()" for name in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_option_is_refused_in_one_line(name, capsys):
    command = name.replace("_", "-")
    assert status(command, "--no-such-option") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lightning-paf: error: ")
    assert line.endswith(f". See `lightning-paf {command} --help`.")


@pytest.mark.parametrize("words", [[name] for name in NAMES] + [["analyze", name] for name in ANALYSES], ids=" ".join)
def test_help_fits_into_80_columns(words, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert status(*(word.replace("_", "-") for word in words), "--help") == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
