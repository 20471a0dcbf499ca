"""A file of every family loads into a new network, which then has the logits of the original."""

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from helpers.originals import FAMILIES, MEAN, STD, Normalize, resnet, wide, write
from torch import nn

from lightning_paf.interop import map_keys, read_checkpoint, split_statistics
from lightning_paf.nets import CifarResNet, TimmNet


def fresh(net: nn.Module) -> nn.Module:
    """The same architecture with other weights and the same sharing of parameters."""
    other = copy.deepcopy(net)
    for tensor in other.state_dict().values():
        tensor.fill_(0.3 if tensor.is_floating_point() else 0)
    return other


def logits(net: nn.Module) -> torch.Tensor:
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return net.eval()(x)


def load(path, net: nn.Module) -> nn.Module:
    tensors, _ = split_statistics(read_checkpoint(path).choose().tensors)
    net.load_state_dict(map_keys(tensors, net).state)
    return net


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_of_every_family_are_those_of_the_original(name, tmp_path):
    original = write(tmp_path / "weights.pt", name)
    loaded = fresh(original)
    assert not torch.allclose(logits(loaded), logits(original), atol=1e-3)
    torch.testing.assert_close(logits(load(tmp_path / "weights.pt", loaded)), logits(original), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("wrap", [lambda net: net, nn.DataParallel])
def test_sequential_with_a_normalisation_gives_its_statistics(wrap, tmp_path):
    torch.save(wrap(nn.Sequential(Normalize(), resnet())).state_dict(), tmp_path / "weights.pt")
    tensors, statistics = split_statistics(read_checkpoint(tmp_path / "weights.pt").choose().tensors)
    assert statistics.mean == pytest.approx(MEAN)
    assert statistics.std == pytest.approx(STD)
    assert set(map_keys(tensors, resnet()).state) == set(resnet().state_dict())


def test_timm_networks_load_the_keys_of_timm(tmp_path):
    import timm

    original = timm.create_model("resnet18", num_classes=10).eval()
    torch.save({"state_dict": original.state_dict()}, tmp_path / "weights.pth")
    loaded = load(tmp_path / "weights.pth", TimmNet("resnet18", num_classes=10))
    torch.testing.assert_close(logits(loaded), logits(original), atol=1e-6, rtol=1e-6)


def test_the_checkpoint_of_the_autoattack_package_has_the_logits_of_its_own_class():
    examples = Path(pytest.importorskip("pyautoattack").__file__).parent / "examples"
    if not (examples / "model_test.pt").exists():
        pytest.skip("this release ships no checkpoint")
    found = importlib.util.spec_from_file_location("their_resnet", examples / "resnet.py")
    theirs = importlib.util.module_from_spec(found)
    found.loader.exec_module(theirs)
    original = theirs.ResNet18()
    original.load_state_dict(torch.load(examples / "model_test.pt", map_location="cpu", weights_only=True))
    ours = load(examples / "model_test.pt", CifarResNet())
    torch.testing.assert_close(logits(ours), logits(original), atol=1e-6, rtol=1e-6)


def test_only_known_names_of_the_head_are_renamed():
    def state(net, head):
        return {key.replace("fc.", f"{head}."): value for key, value in net.state_dict().items()}

    net = resnet()
    torch.testing.assert_close(map_keys(state(net, "linear"), net).state["fc.weight"], net.fc.weight.data)
    with pytest.raises(ValueError, match=r"2 missing in the file: fc\.weight, fc\.bias"):
        map_keys(state(wide(), "classifier"), wide())
