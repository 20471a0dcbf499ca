"""Networks get the numbers of classes and channels of the data."""

import pytest
import torch
import yaml
from helpers.cli_runs import built, experiment


def test_the_network_has_the_classes_of_the_data(tmp_path):
    parts = experiment()
    parts["data"] = {"dataset": "cifar100", "real_fraction": 1.0}
    parts["model"]["net"] = {"class_path": "TimmNet", "init_args": {"name": "resnet10t"}}
    (tmp_path / "cifar100.yaml").write_text(yaml.safe_dump(parts))
    module = built("-c", tmp_path / "cifar100.yaml").model
    assert type(module.model.net.net).__name__ == "ResNet"
    assert module.model.num_classes == module.model.head.out_features == 100
    assert sum(key.endswith(".alpha") for key, _ in module.named_parameters()) == 1


@pytest.mark.parametrize(
    ("net", "data", "channels"),
    [
        ("resnet18", ["digits"], 1),
        ("small", ["npz", "--data.num_classes", "4"], 3),
        ("vgg16_bn", ["npz", "--data.num_classes", "4", "--data.channels", "1"], 1),
    ],
)
def test_the_network_has_the_channels_of_the_data(net, data, channels):
    module = built("-c", "demo/digits", "--model.net", net, "--data.dataset", *data).model
    first = next(layer for layer in module.model.net.modules() if isinstance(layer, torch.nn.Conv2d))
    assert first.in_channels == channels


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.net.in_channels", "3"], r"model\.net\.in_channels must be 1, as in the data, got 3\."),
        (["--model.net.init_args.num_classes=7"], r"num_classes must be 10, as in the data, got 7\. Leave --model"),
    ],
)
def test_typed_sizes_of_the_network_must_be_those_of_the_data(words, message):
    with pytest.raises(ValueError, match=message):
        built("-c", "demo/digits", "--model.net", "small", *words)
