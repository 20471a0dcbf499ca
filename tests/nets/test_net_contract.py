"""Properties of every network of the package."""

import copy
import inspect

import pytest
import torch
from helpers.every_net import LARGE_IMAGES, SMALL, build
from torch import nn

from lightning_paf import nets
from lightning_paf.nets import EmbeddingNet, KernelClassifier, LastStageODE, RandomSelfEnsemble, TimmNet, TorchvisionNet
from lightning_paf.nn.activations import PSSiLU
from lightning_paf.nn.swap import swap_activations


@pytest.fixture(params=SMALL, ids=lambda cls: cls.__name__)
def cls(request):
    return request.param


def test_every_exported_network_is_covered():
    exported = {getattr(nets, name) for name in nets.__all__ if inspect.isclass(getattr(nets, name))}
    own_tests = {EmbeddingNet, KernelClassifier, LastStageODE, RandomSelfEnsemble, TimmNet, TorchvisionNet}
    assert exported == own_tests | set(SMALL)


@pytest.mark.parametrize("in_channels", [1, 3])
def test_logits_and_classifier(cls, in_channels):
    net = build(cls, num_classes=7, in_channels=in_channels).eval()
    assert net(torch.rand(2, in_channels, 32, 32)).shape == (2, 7)
    head = net.get_classifier()
    assert isinstance(head, nn.Linear)
    assert head.out_features == net.num_classes == 7
    linear = [module for module in net.modules() if isinstance(module, nn.Linear)]
    assert head is linear[-1]


@pytest.mark.parametrize("size", [(40, 48), (8, 8)])
def test_images_of_other_shapes(cls, size):
    if size == (8, 8) and cls in LARGE_IMAGES:
        pytest.skip("needs larger images")
    assert build(cls, in_channels=3).eval()(torch.rand(1, 3, *size)).shape == (1, 10)


def test_every_parameter_and_the_input_receive_a_gradient(cls):
    net, x = build(cls, in_channels=3), torch.rand(8, 3, 32, 32, requires_grad=True)
    net(x).square().sum().backward()
    assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []
    assert torch.isfinite(x.grad).all()
    assert (x.grad != 0).any(dim=(1, 2, 3)).all()


def test_one_shared_activation_replaces_all_of_a_forward_pass(cls):
    net, calls = build(cls, in_channels=3).eval(), []
    assert not any(module.inplace for module in net.modules() if isinstance(module, nn.ReLU | nn.SiLU))
    swap_activations(net, PSSiLU)
    (shared,) = {module for module in net.modules() if isinstance(module, PSSiLU)}
    assert not [module for module in net.modules() if isinstance(module, nn.ReLU | nn.SiLU)]
    shared.register_forward_hook(lambda *_: calls.append(1))
    net(torch.rand(1, 3, 32, 32)).sum().backward()
    assert len(calls) == SMALL[cls][1]
    assert shared.alpha.grad.abs() > 0
    assert shared.beta.grad.abs() > 0


def test_initial_logits_have_a_sensible_size_and_convolutions_the_variance_of_he(cls):
    net = build(cls, in_channels=3)
    assert 1e-3 < net(torch.randn(16, 3, 32, 32)).std() < 30
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 4000:
            expected = 2 / (module.kernel_size[0] * module.kernel_size[1] * module.out_channels)
            assert module.weight.var().item() == pytest.approx(expected, rel=0.1)
            assert module.bias is None or not module.bias.any()


def test_in_evaluation_images_do_not_affect_each_other_and_are_not_changed(cls):
    net, x = build(cls, in_channels=3).eval(), torch.rand(3, 3, 32, 32)
    before = x.clone()
    together = net(x)
    torch.testing.assert_close(together, torch.cat([net(image[None]) for image in x]), atol=1e-5, rtol=1e-4)
    assert torch.equal(x, before)


def test_copies_are_equal_and_independent(cls):
    net = build(cls, in_channels=3).eval()
    other, x = copy.deepcopy(net), torch.rand(1, 3, 32, 32)
    assert torch.equal(net(x), other(x))
    with torch.no_grad():
        torch._foreach_mul_([*other.parameters()], 0.5)
    assert not torch.equal(net(x), other(x))


@pytest.mark.parametrize("width", [0, -2])
def test_a_width_below_one_is_refused(cls, width):
    if "width" not in inspect.signature(cls).parameters:
        pytest.skip("has a fixed width")
    with pytest.raises(ValueError, match=f"width must be at least 1, got {width}. Pass another --model.net.width"):
        cls(**SMALL[cls][0] | {"width": width})
