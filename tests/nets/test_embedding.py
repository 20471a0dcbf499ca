"""A network with an embedding of few dimensions."""

import pytest
import torch
from torch import nn

from lightning_paf.nets import CifarResNet, EmbeddingNet, SmallConvNet
from lightning_paf.nn.activations import PSSiLU
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.swap import swap_activations
from lightning_paf.specs import dataset_spec

X = torch.rand(3, 1, 8, 8)


def build(**options):
    torch.manual_seed(0)
    return EmbeddingNet(SmallConvNet(width=4), **options)


def test_logits_come_from_few_dimensions():
    net, seen = build(dimensions=2, hidden=[5], num_classes=7).eval(), []
    net.embedding.register_forward_hook(lambda _, __, output: seen.append(output))
    assert net(X).shape == (3, 7)
    assert seen[0].shape == (3, 2)
    torch.testing.assert_close(net.classifier(seen[0]), net(X))


def test_it_embeds_the_features_of_the_network():
    torch.manual_seed(0)
    plain = Classifier(SmallConvNet(width=4), dataset_spec("digits"), normalize=False)
    net = build().eval()
    torch.testing.assert_close(net.encoder(X), plain.outputs(X).features)
    assert net.embedding.in_features == plain.num_features


def test_without_hidden_layers_the_embedding_is_the_features():
    net = build(dimensions=4, hidden=[]).eval()
    outputs = Classifier(net, dataset_spec("digits"), normalize=False).outputs(X)
    torch.testing.assert_close(outputs.features, net.embedding(net.encoder(X)))
    torch.testing.assert_close(outputs.logits, net(X))


def test_the_mlp_of_the_paper():
    kinds = [type(layer).__name__ for layer in build().classifier]
    assert kinds == ["Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear", "ReLU", "Linear"]


@pytest.mark.parametrize("inner", [lambda: SmallConvNet(in_channels=3, width=4), lambda: CifarResNet(width=4)])
def test_activations_are_swapped_and_every_parameter_gets_a_gradient(inner):
    net = EmbeddingNet(inner(), hidden=[8])
    swap_activations(net, PSSiLU)
    assert not [module for module in net.modules() if isinstance(module, nn.ReLU)]
    net(torch.rand(4, 3, 32, 32)).square().sum().backward()
    assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []
    assert Classifier(net, dataset_spec("cifar10")).num_features == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimensions": 0}, "dimensions, hidden and num_classes must be at least 1, got 0"),
        ({"hidden": [0]}, r"got 16, \[0\], 10"),
        ({"dropout": 1.0}, r"dropout must be .*got 1"),
    ],
)
def test_invalid_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_a_network_without_a_linear_head_is_refused():
    with pytest.raises(ValueError, match=r"net must have a get_classifier\(\) .* got Sequential"):
        EmbeddingNet(nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten()))
