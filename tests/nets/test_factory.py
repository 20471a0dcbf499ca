"""Networks of timm and torchvision by name."""

import json

import pytest
import torch
from helpers.file_server import file_server, use_as_hub
from huggingface_hub import constants
from safetensors.torch import save

from lightning_paf.nets import TimmNet, TorchvisionNet, timm_net, torchvision_net
from lightning_paf.nn.classifier import Classifier
from lightning_paf.specs import DatasetSpec


@pytest.mark.parametrize("name", ["resnet18", "resnet18.a1_in1k"])
def test_timm_passes_arguments_on(name):
    net = timm_net(name, num_classes=7, in_chans=1).eval()
    assert net(torch.rand(2, 1, 32, 32)).shape == (2, 7)
    assert net.get_classifier().out_features == 7


def test_torchvision_passes_arguments_on():
    net = torchvision_net("mobilenet_v3_small", num_classes=7, dropout=0.75).eval()
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 7)
    assert net.classifier[2].p == 0.75


@pytest.mark.parametrize("make", [timm_net, torchvision_net])
def test_ten_fresh_classes_by_default(make):
    torch.manual_seed(0)
    first = make("resnet18")
    assert first.fc.out_features == 10
    assert not torch.equal(first.conv1.weight, make("resnet18").conv1.weight)


@pytest.mark.parametrize(
    ("make", "name", "close"),
    [
        (timm_net, "resnt18", "resnet18"),
        (timm_net, "resnet18.a1_in1kk", "resnet18.a1_in1k"),
        (torchvision_net, "vgg16bn", "vgg16_bn"),
        (torchvision_net, "vit_b16", "vit_b_16"),
    ],
)
def test_unknown_names_list_the_closest(make, name, close):
    with pytest.raises(ValueError, match=f"has no network called '{name}'") as error:
        make(name)
    assert close in str(error.value)


@pytest.mark.parametrize("make", [timm_net, torchvision_net])
@pytest.mark.parametrize("name", ["", "???", "no/such"])
def test_names_without_a_close_one_are_refused(make, name):
    with pytest.raises(ValueError, match="has no network called"):
        make(name)


def test_timm_resolves_a_name_with_a_source(tmp_path):
    values = {"architecture": "resnet10t", "num_classes": 5, "pretrained_cfg": {}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert timm_net(f"local-dir:{tmp_path}", num_classes=7).num_classes == 7


@pytest.mark.parametrize(
    ("make", "name", "options", "reason"),
    [
        (timm_net, "local-dir:/no/such/folder", {}, "FileNotFoundError"),
        (timm_net, "resnet18", {"no_such_option": 1}, "TypeError"),
        (torchvision_net, "resnet18", {"no_such_option": 1}, "TypeError"),
        (torchvision_net, "resnet18", {"weights": "NO_SUCH"}, "KeyError"),
    ],
)
def test_errors_of_a_library_are_one_line(make, name, options, reason):
    with pytest.raises(ValueError, match=f"can build with these arguments, got {name!r} and {reason}: .*[Pp]ass other"):
        make(name, **options)


def test_torchvision_offers_classifiers_only():
    with pytest.raises(ValueError, match="has no network called 'fcn_resnet50'"):
        torchvision_net("fcn_resnet50")


def test_the_classifier_finds_the_head_of_a_network_of_a_library():
    for net in (TimmNet("resnet10t", num_classes=7), TorchvisionNet("mobilenet_v3_small", num_classes=7)):
        model = Classifier(net, DatasetSpec("mine", 7, 32, (0.5,) * 3, (0.25,) * 3)).eval()
        logits, features, _ = model.outputs(torch.rand(2, 3, 32, 32))
        torch.testing.assert_close(model.head(features), logits)
        assert logits.shape == (2, 7)


def test_pretrained_weights_of_timm_are_downloaded_once(tmp_path, monkeypatch):
    """They come from the hub, then from its cache; without both, the error is one line."""
    trained = timm_net("test_resnet", num_classes=1000)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with file_server() as server:
        use_as_hub(server, tmp_path / "hub", monkeypatch)
        server.files["/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"] = save(trained.state_dict())
        online = TimmNet("test_resnet", pretrained=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offline = TimmNet("test_resnet", pretrained=True)
    for net in (online.net, offline.net):
        assert torch.equal(net.conv1[0].weight, trained.conv1[0].weight)
        assert net.num_classes == 10
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="timm can build with these arguments, got 'test_resnet' and ") as error:
        TimmNet("test_resnet", pretrained=True)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith("Check the files and the network, or pass other arguments, or another name.")
