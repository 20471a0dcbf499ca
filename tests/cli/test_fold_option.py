"""The folded model on the command line: replaced gradients, log and option."""

import json

import pytest
import yaml
from helpers.cli_runs import experiment, status
from helpers.fakes import write_npz_dataset

from lightning_paf.evaluation.outcomes import Outcome


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


def test_signs_of_an_unreliable_result_are_in_its_files_and_on_the_console(rounded, tmp_path, recwarn):
    found = evaluated(rounded, tmp_path, "--model.net", "helpers.rounded_net.UnreliableNet")
    assert set(found["flags"]) == {"random-outputs", "softmax-outputs"}
    for text in found["flags"].values():
        assert text in [str(warning.message) for warning in recwarn]
        assert text in next((tmp_path / "test").glob("*.html")).read_text()


@pytest.mark.parametrize(
    "words", [("test", "--ckpt_path"), ("curve", "--ckpt"), ("certify", "--sigma", "0.1"), ("sanity-check", "--ckpt")]
)
def test_another_output_is_refused_in_one_line(rounded, words, capfd):
    last = rounded / "checkpoints" / "last.ckpt"
    assert status(*words, last, "--model.net", "helpers.rounded_net.TupleNet", "--trust-config") != 0
    error = capfd.readouterr().err
    assert "must return logits, or an object with `.logits`, got tuple" in error
    assert "Traceback" not in error
