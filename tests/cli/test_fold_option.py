"""The folded model on the command line: replaced gradients, log and option."""

import json

import pytest
import yaml
from helpers.cli_runs import experiment, status
from helpers.fakes import write_npz_dataset

from lightning_paf.evaluation.result import Outcome


@pytest.fixture(scope="module")
def rounded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rounded")
    written = experiment()
    written["data"]["root"] = str(write_npz_dataset(folder / "images"))
    written["model"]["net"] = {"class_path": "helpers.rounded_net.RoundedNet"}
    written["model"]["normalize"] = False
    written["trainer"]["max_epochs"] = 8
    (folder / "rounded.yaml").write_text(yaml.safe_dump(written))
    assert status("fit", "-c", folder / "rounded.yaml", "--run", folder / "run") == 0
    return folder / "run"


def evaluated(run, folder, *words):
    attack = ["--val_attack.attack", "AutoAttack", "--val_attack.attack.eps", "24/255"]
    quick = ["--val_attack.attack.version", "custom", "--val_attack.attack.attacks", "[apgd-ce]"]
    last = run / "checkpoints" / "last.ckpt"
    assert status("test", "-c", run / "config.yaml", "--ckpt_path", last, "--run", folder, *attack, *quick, *words) == 0
    (file,) = (folder / "test").glob("*.json")
    return json.loads(file.read_text())


def test_a_replacement_gradient_is_kept_and_the_reason_is_logged(rounded, tmp_path, capfd):
    found = evaluated(rounded, tmp_path / "default")
    output = capfd.readouterr().err
    assert output.count("RoundedNet has no equivalent folded copy: A part of the forward pass is an") == 1
    expected = evaluated(rounded, tmp_path / "off", "--val_attack.attack.fold", "false")
    assert "no equivalent folded copy" not in capfd.readouterr().err
    assert found["outcomes"] == expected["outcomes"]
    assert expected["attack"]["fold"] is False
    assert "fold" not in found["attack"]
    assert str(int(Outcome.FOOLED)) in found["outcomes"]
