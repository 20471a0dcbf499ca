"""`report` of runs, results and evidence."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.cli_runs import evaluated_run, status

from lightning_paf.attacks import PGD

ATTACK = PGD(0.5, steps=2, step_size=0.3)
STEM = "pgd_linf_0.5"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with one evaluation: result and evidence."""
    folder = tmp_path_factory.mktemp("report")
    result = evaluated_run(folder, ATTACK, f"run/test/{STEM}.evidence.safetensors", with_config=False)
    replace(result, name="pgd").save(folder / "run" / "test" / f"{STEM}.json")
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy that a test may damage; its images stay where they are."""
    return shutil.copytree(trained / "run", tmp_path / "copy")


def test_a_run_gets_one_report_for_each_evaluation_with_the_curve(run, capsys):
    shutil.copy(run / "test" / f"{STEM}.json", run / "test" / "again.json")
    (run / "test" / "other.json").write_text("{}")
    (run / "curve").mkdir()
    (run / "curve" / "curve_linf.json").write_text(curve(alarms=["It rises."]))
    assert status("report", run) == 0
    printed = capsys.readouterr().out
    assert sorted(path.name for path in (run / "test").glob("*.html")) == ["again.html", f"{STEM}.html"]
    assert printed.count(": robust ") == 2
    with_evidence, without = ((run / "test" / f"{name}.html").read_text() for name in (STEM, "again"))
    evidence, checkpoint = run / "test" / f"{STEM}.evidence.safetensors", run / "checkpoints" / "last.ckpt"
    assert f"lightning-paf verify {evidence} --ckpt {checkpoint}" in with_evidence
    assert "fooled by pgd" in " ".join(with_evidence.split())
    assert "Predictions under attack" in with_evidence
    assert "There is no evidence" in without
    assert "Adversarial examples" not in without
    for text in (with_evidence, without):
        assert "Activations" in text
        assert "Security curve" in text
        assert "Alarm: It rises." in text
        assert "://" not in text


def test_a_result_on_other_images_is_named_and_the_others_get_pages(trained, run, tmp_path, capsys):
    shutil.copy(run / "test" / f"{STEM}.json", run / "test" / "again.json")
    for part in ("train", "test"):
        images = dict(np.load(trained / "images" / f"{part}.npz"))
        np.savez(tmp_path / f"{part}.npz", **{**images, "image": 255 - images["image"]})
    assert status("report", run, "--data.root", tmp_path) == 1
    assert f"{STEM}: " in capsys.readouterr().err
    assert [path.name for path in (run / "test").glob("*.html")] == ["again.html"]


def test_evidence_alone_is_enough(run, tmp_path):
    evidence = run / "test" / f"{STEM}.evidence.safetensors"
    moved = shutil.move(evidence, tmp_path / f"mine{''.join(evidence.suffixes[-2:])}")
    assert status("report", moved, "--ckpt", run / "checkpoints" / "last.ckpt", "--out", tmp_path / "o.html") == 0
    text = (tmp_path / "o.html").read_text()
    assert "mine" in text
    assert "fooled by pgd" in " ".join(text.split())


def test_a_result_alone_needs_no_checkpoint(run, tmp_path):
    result = shutil.copy(run / "test" / f"{STEM}.json", tmp_path / "alone.json")
    assert status("report", result) == 0
    text = (tmp_path / "alone.html").read_text()
    assert "<h2>Classes</h2>" in text
    assert "Activations" not in text


def curve(norm="linf", alarms=()):
    points = [{"eps_value": eps, "robust": robust, "total": 22} for eps, robust in ((0.0, 20), (0.5, 3))]
    return json.dumps({"norm": norm, "points": points, "check": {"alarms": [*alarms]}})


FILES = {
    "list.json": "[]",
    "number.json": '{"verdicts": 3}',
    "text.json": "no json",
    "attack.json": '{"name": "a", "attack": [], "verdicts": "12", "seconds": 0}',
    "radius.json": '{"name": "a", "attack": {"eps_value": "much"}, "verdicts": "12", "seconds": 0}',
    "none.json": '{"name": "a", "attack": {}, "verdicts": "00", "seconds": 0}',
    "l2.json": curve("l2"),
    "empty.json": '{"points": [{}]}',
    "check.json": '{"points": [], "check": 3}',
    "eps.json": '{"points": [{"eps_value": "much", "robust": 1, "total": 2}]}',
}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["nowhere.json"], "There is no result nowhere.json"),
        (["checkpoints/last.ckpt"], "There is no result checkpoints/last.ckpt"),
        (["checkpoints"], "There is no result in checkpoints"),
        ([".", f"test/{STEM}.json", "--out", "o.html"], "--out must be for one result, got 2"),
        ([".", "--curve", "no.json"], "--curve must exist, got no.json"),
        ([".", "--curve", "l2.json"], "must be linf, got l2"),
        *(([name], "must be a result of") for name in [*FILES][:6]),
        *(([".", "--curve", name], "--curve must be written by") for name in ("list.json", *[*FILES][7:])),
    ],
)
def test_other_inputs_are_refused_in_one_line(run, monkeypatch, capsys, options, words):
    monkeypatch.chdir(run)
    for name, content in FILES.items():
        (run / name).write_text(content)
    assert status("report", *options) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_other_weights_are_refused(run, capsys):
    path = run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    name = next(name for name, value in checkpoint["state_dict"].items() if value.is_floating_point())
    checkpoint["state_dict"][name] = checkpoint["state_dict"][name] + 1e-6
    torch.save(checkpoint, path)
    assert status("report", run) == 1
    assert "--ckpt must hold the weights that" in capsys.readouterr().err


def test_other_images_are_refused(trained, run, tmp_path, capsys):
    images = shutil.copytree(trained / "images", tmp_path / "images")
    with np.load(images / "test.npz") as file:
        image, label = file["image"], file["label"]
    np.savez(images / "test.npz", image=255 - image, label=label)
    assert status("report", run, "--data.root", images) == 1
    assert "must be those of the evidence" in capsys.readouterr().err


def test_result_and_evidence_of_different_evaluations_are_not_mixed(run, capsys):
    path = run / "test" / f"{STEM}.json"
    content = json.loads(path.read_text())
    content["outcomes"] = content["outcomes"].translate(str.maketrans("12", "21"))
    path.write_text(json.dumps(content))
    assert status("report", run) == 1
    assert "must have the same outcomes" in capsys.readouterr().err
