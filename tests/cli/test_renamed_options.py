"""Options of earlier versions: errors with new names, and saved configurations."""

import pytest
import yaml
from helpers.cli_runs import status, trained_run, write_experiment

from lightning_paf.cli.renamed_options import RENAMED, with_new_names


@pytest.mark.parametrize(
    ("typed", "new"),
    [
        ("--autoattack.ledger=runs/x", "--autoattack.state_dir"),
        ("--autoattack.receipt", "--autoattack.evidence"),
        ("--val_attack.receipt=false", "--val_attack.evidence"),
        ("--val_attack.init_args.ledger", "--val_attack.init_args.state_dir"),
    ],
)
def test_an_old_name_on_the_command_line_is_an_error_with_the_new_one(tmp_path, capsys, typed, new):
    assert status("fit", "-c", write_experiment(tmp_path), typed) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{typed.split('=')[0]} was renamed. Pass {new}." in error


def test_a_removed_stop_rule_is_an_error_with_the_known_ones(tmp_path, capsys):
    assert status("fit", "-c", write_experiment(tmp_path), "--val_attack.stop", "Decide") == 2
    known = capsys.readouterr().err.partition("stop=Decide names no known class. Known: ")[2]
    assert {"HalfWidth", "TimeLimit"} <= set(known.partition(".")[0].split(", "))


@pytest.fixture(scope="module")
def old_run(tmp_path_factory):
    """A run whose configuration has the old names."""
    folder = tmp_path_factory.mktemp("old")
    trained_run(folder)
    saved = folder / "run" / "config.yaml"
    text = saved.read_text().replace("evidence: true", "receipt: false").replace("state_dir: null", "ledger: null")
    assert all(f"{old}:" in text and f"{new}:" not in text for old, new in RENAMED.items())
    saved.write_text(text)
    return folder / "run"


@pytest.mark.parametrize("named", ["checkpoint", "config", "trusted"])
def test_the_saved_configuration_of_an_earlier_version_is_read(old_run, tmp_path, named):
    words = {"checkpoint": [], "config": ["-c", old_run / "config.yaml"], "trusted": ["--trust-config"]}[named]
    checkpoint = old_run / "checkpoints" / "last.ckpt"
    assert status("test", *words, "--ckpt_path", checkpoint, "--run", tmp_path) == 0
    assert (tmp_path / "test" / "pgd_linf_8-255.json").is_file()
    assert not list((tmp_path / "test").glob("*.evidence.safetensors")), "the old option has its effect"


def test_other_words_and_configurations_are_unchanged(tmp_path):
    config = tmp_path / "a.yaml"
    config.write_text("data:\n  root: receipts\n")
    words = ["fit", "--config", str(config), "--run", "ledger", "--data.root", "receipt: no"]
    assert with_new_names(words) == words
    config.write_text(yaml.safe_dump({"autoattack": {"init_args": {"ledger": "x", "attack": [{"receipt": 1}]}}}))
    long = ["fit", "--config", "{data: {root: " + 5000 * "x" + "}}"]
    assert with_new_names(long) == long, "the content of a file on one line"
    (_, _, text, *rest) = with_new_names(words)
    assert yaml.safe_load(text) == {"autoattack": {"init_args": {"state_dir": "x", "attack": [{"evidence": 1}]}}}
    assert rest == words[3:]
