"""Every command on a moved run and with another normalisation: no silently wrong number."""

import shutil
from pathlib import Path

import pytest
import yaml
from helpers.cli_runs import status, write_experiment

STEM = "pgd_linf_8-255"
COMMANDS = {
    "test": "--ckpt_path CKPT",
    "validate": "--ckpt_path CKPT",
    "predict": "--ckpt_path CKPT",
    "curve": "--ckpt CKPT --examples 2 --steps 2 --grid 0,8/255",
    "certify": "CKPT --sigma 0.5 --samples 2 4 --examples 2",
    "sanity-check": "--ckpt CKPT --examples 20",
    "export": "--ckpt CKPT --out OUT --formats state_dict",
    "verify": "EVIDENCE --ckpt CKPT",
    "report": "RUN --ckpt CKPT --out OUT",
    "synthesis-report": "POOL --ckpt CKPT --out OUT",
    "compare": "RUN RUN",
}


@pytest.fixture(scope="module")
def tested(tmp_path_factory) -> Path:
    """A tested run, moved from the folder of its training."""
    folder = tmp_path_factory.mktemp("tested")
    trained = folder / "trained"
    assert status("fit", "-c", write_experiment(folder), "--run", trained) == 0
    moved = trained.rename(folder / "moved")
    assert status("test", "--ckpt_path", moved / "checkpoints" / "last.ckpt") == 0
    config = yaml.safe_load((moved / "config.yaml").read_text())
    config["model"]["normalize"] = False
    (folder / "raw.yaml").write_text(yaml.safe_dump(config))
    return moved


def typed(command: str, run: Path, out: Path) -> list[str]:
    """Return the words of a command on the last checkpoint of a run."""
    paths = {"CKPT": run / "checkpoints" / "last.ckpt", "RUN": run, "OUT": out}
    paths["POOL"] = run.parent / "images" / "train.npz"
    paths["EVIDENCE"] = run / "test" / f"{STEM}.evidence.safetensors"
    return [command, *(str(paths.get(word, word)) for word in COMMANDS[command].split())]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_moved_run_is_found_by_its_checkpoint(command, tested, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert status(*typed(command, tested, tmp_path / "out")) == 0
    assert not (tested.parent / "trained").exists(), "written to the folder of the training"


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "compare"])
def test_another_normalisation_is_reported(command, tested, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(tested, tmp_path / "run")
    with pytest.warns(UserWarning, match="model.normalize must be true for the accuracy of this checkpoint"):
        status(*typed(command, run, tmp_path / "out"), "-c", tested.parent / "raw.yaml")


def test_a_comparison_names_untrained_weights(tested, tmp_path, capsys):
    assert status("test", "--untrained", "-c", tested / "config.yaml", "--run", tmp_path) == 0
    assert status("compare", tested, tmp_path) == 0
    assert "untrained (random weights)" in capsys.readouterr().out


def test_an_interrupt_outside_of_training_steps_is_one_line(monkeypatch, capsys):
    def interrupted(words):
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning_paf.commands.compare.main", interrupted)
    assert status("compare", "runs/a", "runs/b") == 130
    assert capsys.readouterr().err == "lightning-paf: compare was interrupted\n"
