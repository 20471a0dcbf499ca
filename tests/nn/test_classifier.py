from dataclasses import replace

import pytest
import torch
from helpers.fakes import TinyNet, images, spec, tiny_classifier
from torch import nn

from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.weights import load_classifier
from lightning_paf.speed.folded_model import FoldedModel


@pytest.mark.parametrize("normalize", [True, False])
def test_normalisation_is_the_first_line(normalize):
    x, _ = images()
    net = TinyNet().eval()
    expected = net((x - 0.5) / 0.25 if normalize else x)
    torch.testing.assert_close(Classifier(net, spec(), normalize).eval()(x), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_float32_images_are_normalised_exactly_for_weights_of_another_precision(dtype):
    x, _ = images()
    net = TinyNet().eval()
    statistics = replace(spec(), mean=(0.4914,) * 3)
    model = Classifier(net, statistics).eval()
    before = model.mean.clone()
    logits = model.to(dtype)(x)
    assert torch.equal(logits, net(((x - 0.4914) / 0.25).to(dtype)))
    assert torch.equal(model.float().mean, before)
    assert model(x).dtype == torch.float32


def test_outputs_have_features_and_leave_no_hooks():
    x, _ = images()
    model = tiny_classifier().eval()
    logits, features, aux = model.outputs(x)
    assert features.shape == (len(x), model.num_features)
    torch.testing.assert_close(model.head(features), logits)
    torch.testing.assert_close(model(x), logits)
    assert aux == ()
    assert not model.head._forward_pre_hooks


def test_outputs_have_the_logits_of_auxiliary_heads():
    class WithHead(TinyNet):
        def forward_aux(self, x, y):
            return self(x), [self(x) + 1]

    x, y = images()
    outputs = Classifier(WithHead(), spec()).eval().outputs(x, y)
    torch.testing.assert_close(outputs.aux[0], outputs.logits + 1)


def test_checkpoints_hold_no_statistics_of_the_dataset():
    assert not [key for key in tiny_classifier().state_dict() if "mean" in key.split(".")[0] or "std" in key]


@pytest.mark.parametrize(
    ("net", "classes", "message"),
    [
        (TinyNet(10), 100, r"TinyNet must be 100, .* got 10. Pass --model.net.num_classes 100"),
    ],
)
def test_networks_without_a_fitting_head_are_refused(net, classes, message):
    with pytest.raises(ValueError, match=message):
        Classifier(net, spec(classes))


class ConvolutionalHead(nn.Module):
    """A network with a linear layer that does not return the logits."""

    def __init__(self):
        super().__init__()
        self.gate, self.head = nn.Linear(3, 3), nn.Conv2d(3, 10, 1)

    def get_classifier(self):
        return self.head

    def forward(self, x):
        x = x * self.gate(x.mean((2, 3))).sigmoid()[..., None, None]
        return self.head(x).mean((2, 3))


@pytest.mark.parametrize("net", [nn.Sequential(nn.Conv2d(3, 10, 32), nn.Flatten()), ConvolutionalHead()])
def test_only_features_and_a_fresh_head_require_a_linear_head(net, tmp_path):
    model = Classifier(net, spec())
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(ValueError, match=r"last layer of \w+ must be nn.Linear for its features, got one of Conv2d"):
        model.outputs(torch.rand(2, 3, 32, 32))
    torch.save(
        {"state_dict": {f"model.{key}": value for key, value in model.state_dict().items()}}, tmp_path / "a.ckpt"
    )
    load_classifier(model, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"must be nn.Linear"):
        load_classifier(model, tmp_path / "a.ckpt", fresh_head=True)


class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor([value]))

    def penalty(self):
        return 2 * self.value


def test_a_shared_penalised_layer_counts_once():
    layer = Constant(3.0)
    for layers, expected in (([], 0.0), ([layer, layer], 6.0), ([layer, Constant(1.0)], 8.0)):
        model = Classifier(nn.Sequential(*layers, nn.Linear(2, 10)), spec())
        torch.testing.assert_close(model.penalty(), torch.tensor(expected))


def test_the_folded_model_is_not_part_of_the_model():
    model = tiny_classifier()
    keys, modules = list(model.state_dict()), list(model.modules())
    assert model.fast_forward is None
    model.fast_forward = FoldedModel(model)
    with torch.no_grad():
        model.eval().fast_forward.refresh()(images()[0])
    assert model.fast_forward.folded
    assert list(model.state_dict()) == keys
    assert list(model.modules()) == modules
