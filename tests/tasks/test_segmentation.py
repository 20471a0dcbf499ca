"""Training and evaluation of few-shot segmentation through the command line."""

import csv
import json

import numpy as np
import pytest
from helpers.cli_runs import built, status
from helpers.every_task import segmentation
from PIL import Image

from lightning_paf.attacks.episodes import paper_attacks
from lightning_paf.nets.few_shot import PANet
from lightning_paf.nn.activations import PSSiLU
from lightning_paf.objectives.segmentation import AdversarialEpisodeCE, RegularizedEpisodeCE
from lightning_paf.tasks import FewShotSegmentation

LAST = "checkpoints/last.ckpt"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return segmentation(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    assert status("fit", "-c", tiny, "--run", folder) == 0
    return folder


def test_a_run_logs_dice(run):
    with (run / "metrics.csv").open() as stream:
        found = [row for row in csv.DictReader(stream) if row["val/dice"]]
    assert len(found) == 2
    assert all(0 <= float(row[name]) <= 1 for row in found for name in ("val/dice", "val/dice_adv"))


@pytest.mark.parametrize("target", ["query", "support"])
def test_a_run_is_tested(run, target):
    assert status("test", "--ckpt_path", run / LAST, "--model.target", target) == 0
    content = json.loads((run / "test" / "segmentation.json").read_text())
    assert set(content["results"]) == {"clean", "pgd", "square"}
    assert (content["settings"]["target"], content["weights"]["global_step"]) == (target, 8)
    found = content["results"]["clean"]["dice"]
    assert found["low"] < found["value"] < found["high"]
    assert found["value"] == pytest.approx(np.mean(found["values"]))
    assert len(found["values"]) == len(content["samples"]) >= 2
    with Image.open(run / "test" / "segmentation.png") as image:
        assert image.size[0] > 800
        assert (np.asarray(image.convert("L")) < 20).mean() < 0.1, "slices are grey"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "--ckpt_path", "{last}"], "predict must have a classifier, got FewShotSegmentation"),
        (["curve", "--ckpt", "{last}"], "a model of the kind classifier, got FewShotSegmentation"),
        (["fit", "-c", "{tiny}", "--data.ways", "5"], "train_classes must hold at least the 5 classes of an episode"),
        (["fit", "-c", "{tiny}", "--data.shots", "200"], "must be on at least 200 slices of the train volumes"),
        (["fit", "-c", "{tiny}", "--data.train_classes", "[1, 7]"], "must be among the labels [1, 2, 3, 4, 5, 6]"),
        (
            ["fit", "-c", "{tiny}", "--data.test_classes", "[7]"],
            "test_classes must be among the labels [1, 2, 3, 4, 5, 6]",
        ),
        (["fit", "-c", "{tiny}", "--data.train_classes", "[1, 1]"], "train_classes must be different labels from 1"),
        (["fit", "-c", "{tiny}", "--data.subjects", "3"], "subjects must be at least 5"),
        (["fit", "-c", "{tiny}", "--data.window", "[5, 5]"], "window must be increasing"),
        (["fit", "-c", "{tiny}", "--data.size", "8"], "size must be at least 16, got 8"),
        (["fit", "-c", "{tiny}", "--data.train_dir", "absent"], "--data.train_dir must be a folder in the layout"),
        (["fit", "-c", "{tiny}", "--data.test_dir", "absent"], "train_dir must be set with test_dir"),
        (["fit", "-c", "{tiny}", "--model.eps", "0"], "eps must be positive"),
        (["fit", "-c", "{tiny}", "--model.seven_attacks", "true"], "attacks must be null with seven_attacks"),
        (["fit", "-c", "{tiny}", "--model.objective.noise", "-1"], "noise must be at least 0"),
        (["fit", "-c", "{tiny}", "--model.net.groups", "3"], "groups must divide the 4 channels"),
        (["fit", "-c", "{tiny}", "--model.net.convs", "[1]"], "convs must be as many as widths"),
        (
            ["fit", "-c", "{tiny}", "--model.net", "SmallConvNet"],
            "be a network without classes, got SmallConvNet",
        ),
        (["fit", "-c", "{tiny}", "--checkpoint.monitor", "val/acc"], "one of val/dice, val/dice_adv"),
    ],
)
def test_bad_input_is_refused_in_one_line(words, message, tiny, run, capsys):
    if "--data.train_dir" in words:
        pytest.importorskip("nibabel")
    assert status(*(word.format(last=run / LAST, tiny=tiny) for word in words)) in (1, 2)
    error = capsys.readouterr().err
    assert message in " ".join(error.split())
    assert "Traceback" not in error


def test_the_network_follows_the_data(tiny):
    net = "--model.net", "PANet", "--model.net.widths", "[4, 4]", "--model.net.convs", "[1, 1]"
    words = "--data.channels", "3", "--model.objective", "AdversarialEpisodeCE", "--model.activation", "PSSiLU"
    module = built("-c", tiny, *net, "--model.net.groups", "2", *words).model
    assert type(module.model.net) is PANet
    assert module.model.net.encoder[0].in_channels == 3
    assert isinstance(module.objective, AdversarialEpisodeCE)
    assert sum(isinstance(layer, PSSiLU) for layer in module.modules()) > 0


@pytest.mark.parametrize("recipe", ["shapes", "decathlon"])
def test_the_recipes_build(recipe, monkeypatch):
    monkeypatch.setattr("lightning_paf.nets.few_shot.load_vgg16", lambda encoder: None)
    module = built("-c", f"segmentation/{recipe}").model
    assert type(module) is FewShotSegmentation
    assert isinstance(module.objective, RegularizedEpisodeCE)
    assert list(module.attacks) == (list(paper_attacks(0.035, 1024)) if recipe == "decathlon" else ["fgsm", "pgd"])
