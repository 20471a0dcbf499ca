"""Entry for RobustBench's leaderboard."""

import numpy as np
import pytest

from lightning_paf.evaluation import EvaluationResult
from lightning_paf.interop import model_info
from lightning_paf.interop.leaderboard import architecture

FIELDS = (
    "link name authors additional_data number_forward_passes dataset venue architecture eps clean_acc reported "
    "autoattack_acc footnote unreliable"
)
CONFIG = {
    "data": {"dataset": "cifar10", "synthetic": None},
    "model": {
        "net": {"class_path": "lightning_paf.nets.WideResNet", "init_args": {"depth": 28, "width": 10}},
        "activation": {"class_path": "lightning_paf.nn.activations.PSSiLU"},
    },
}


def result(version="standard", n=10_000, attack="AutoAttack"):
    outcomes = np.full(n, 1, np.uint8)
    outcomes[: n // 4] = 2
    outcomes[: n // 10] = 3
    return EvaluationResult("autoattack", {"attack": attack, "version": version, "eps": "8/255"}, outcomes, 1.0)


def test_fields_and_their_order_are_those_of_the_leaderboard():
    entry, missing = model_info(CONFIG)
    assert " ".join(entry) == FIELDS
    assert (entry["dataset"], entry["architecture"]) == ("cifar10", "WideResNet-28-10-PSSiLU")
    assert (entry["number_forward_passes"], entry["unreliable"]) == (1, False)
    assert " ".join(missing) == "link name authors additional_data venue eps clean_acc reported autoattack_acc"
    assert all(entry[field] == "" for field in missing)


def test_a_result_fills_in_the_numbers():
    entry, missing = model_info(CONFIG, result())
    assert (entry["eps"], entry["clean_acc"], entry["autoattack_acc"]) == ("8/255", "90.00", "75.00")
    assert entry["footnote"] == ""
    assert not {"eps", "clean_acc", "autoattack_acc"} & set(missing)


@pytest.mark.parametrize("other", [{"version": "custom"}, {"attack": "PGD"}])
def test_only_standard_autoattack_counts(other):
    entry, missing = model_info(CONFIG, result(**other))
    assert entry["autoattack_acc"] == ""
    assert "autoattack_acc" in missing


def test_the_footnote_names_additional_data_and_a_small_test_set():
    config = {**CONFIG, "data": {"dataset": "cifar10", "synthetic": ["pool.npz"]}}
    footnote = model_info(config, result(n=1000))[0]["footnote"]
    assert footnote == "It uses additional synthetic images in training. Accuracies on 1000 test images."


def test_other_data_are_not_of_the_leaderboard():
    entry, missing = model_info({**CONFIG, "data": {"dataset": "npz"}}, result(n=50))
    assert (entry["dataset"], entry["footnote"]) == ("", "Accuracies on 50 test images.")
    assert "dataset" in missing


@pytest.mark.parametrize(
    ("net", "name"),
    [
        ({"class_path": "lightning_paf.nets.VGG16BN"}, "VGG16BN"),
        ({"class_path": "lightning_paf.nets.TimmNet", "init_args": {"name": "resnet50"}}, "resnet50"),
        (
            {
                "class_path": "lightning_paf.interop.NormalizedNet",
                "init_args": {"net": {"class_path": "a.CifarResNet", "init_args": {"depth": 18, "width": 64}}},
            },
            "CifarResNet-18-64",
        ),
    ],
)
def test_networks_have_their_usual_names(net, name):
    assert architecture({"net": net, "activation": None}) == name
