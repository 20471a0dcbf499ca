"""The folded model follows the model's weights; if it cannot be equivalent, the model itself is used."""

import copy
import inspect
import pickle
from functools import partial

import pytest
import torch
from helpers.devices import devices
from helpers.every_net import SMALL, build
from helpers.fakes import Branching, Noisy, TinyNet, images, spec, tiny_classifier
from torch import nn
from torch.nn import functional as F

from lightning_paf import nets
from lightning_paf.attacks import PGD
from lightning_paf.nn.activations import PSSiLU
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.modes import frozen, full_precision
from lightning_paf.nn.swap import swap_activations
from lightning_paf.specs import dataset_spec
from lightning_paf.speed.folded_model import FoldedModel

NETS = {cls.__name__: partial(build, cls, in_channels=3) for cls in SMALL} | {
    "EmbeddingNet": lambda: nets.EmbeddingNet(nets.CifarResNet(width=4), hidden=[8]),
    "KernelClassifier": lambda: nets.KernelClassifier(support=10),
    "LastStageODE": lambda: nets.LastStageODE(nets.CifarResNet(width=4), groups=4, step=0.5),
}
NOT_FOLDED = {"ALTNODE", "LTNODE", "LastStageODE", "NODE", "ODENet", "TisODENet"}
TIMM = {
    "test_resnet": {},
    "test_convnext": {},
    "vit_tiny_patch16_224": {"img_size": 32, "depth": 2},
    "test_efficientnet": {},
}


def train(model, steps=3, size=16):
    """Optimiser steps in training mode, which change weights, activations and statistics."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model.train()
    weight = next(model.parameters())
    for _ in range(steps):
        x, y = torch.rand(8, 3, size, size).to(weight), torch.randint(10, (8,)).to(weight.device)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def resnet(activation=PSSiLU):
    net = nets.CifarResNet(width=4)
    if activation is not None:
        swap_activations(net, activation)
    return Classifier(net, spec())


def results(forward, x):
    """Logits and the gradient of their loss by the images."""
    x = x.detach().clone().requires_grad_()
    logits = forward(x)
    loss = F.cross_entropy(logits.float(), torch.arange(len(x), device=x.device) % logits.shape[1], reduction="sum")
    return logits.detach(), torch.autograd.grad(loss, x)[0]


def assert_same(fast, model, x):
    with frozen(model), full_precision():
        for found, expected in zip(results(fast.refresh(), x), results(model, x), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def snapshot(model):
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return (
        [(name, id(tensor), tensor._version) for name, tensor in tensors],
        [parameter.requires_grad for parameter in model.parameters()],
        [(name, id(module), module.training, sorted(vars(module))) for name, module in model.named_modules()],
    )


@devices
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("activation", [None, PSSiLU])
def test_it_follows_the_model_through_training(activation, layout, device):
    # In double precision, since rounding to single precision can move the input of a ReLU across 0.
    model = resnet(activation).to(device, torch.float64, memory_format=layout)
    fast, x = FoldedModel(model), torch.rand(6, 3, 16, 16).to(device, torch.float64, memory_format=layout)
    for _ in range(3):
        assert_same(fast, model, x)
        train(model)
    weights = [layer.copy.weight for layer in fast._folding.layers]
    stale = [weight.clone() for weight in weights]
    assert_same(fast, model, x)
    assert not any(map(torch.equal, weights, stale)), "refreshed in place"
    assert fast.folded
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast._folding.net.modules())
    convolutions = [layer.copy for layer in fast._folding.layers if layer.copy.weight.dim() == 4]
    assert all(layer.weight.is_contiguous(memory_format=layout) for layer in convolutions)


def test_addresses_of_weights_do_not_change():
    model, x = resnet(), torch.rand(4, 3, 16, 16)
    fast = FoldedModel(model)
    addresses = set()
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            with frozen(model):
                forward = fast.refresh()
                forward(x)
            addresses.add(tuple(buffer.data_ptr() for layer in fast._folding.layers for buffer in layer.copy.buffers()))
            train(model, 1)
    assert len(addresses) == 1
    assert len(set(*addresses)) == 42  # weight and bias of 21 layers


def test_activations_are_shared_with_the_model():
    model, x = resnet(), torch.rand(4, 3, 16, 16)
    fast = FoldedModel(model)
    with frozen(model):
        forward = fast.refresh()
        before = forward(x)
        assert [m for m in fast._folding.net.modules() if isinstance(m, PSSiLU)] == [model.net.activation]
        model.net.activation.beta.data += 0.2
        assert not torch.equal(forward(x), before)  # without a refresh


@devices
def test_autocast_weights_are_stored_in_its_dtype(device):
    model, x = resnet().to(device), torch.rand(8, 3, 16, 16).to(device)
    train(model, 5)
    fast = FoldedModel(model)
    with frozen(model), torch.autocast(device, torch.bfloat16):
        logits, gradient = results(fast.refresh(), x)
        same, same_gradient = results(model, x)
    assert logits.dtype == same.dtype == torch.bfloat16
    assert gradient.dtype == torch.float32
    assert {layer.copy.weight.dtype for layer in fast._folding.layers} == {torch.bfloat16}
    with frozen(model), full_precision():
        exact, exact_gradient = results(model, x)
    assert F.cosine_similarity(gradient.flatten(), exact_gradient.flatten(), dim=0) > 0.98
    # The rounding errors are not larger than without folding.
    assert (logits - exact).norm() < 2 * (same - exact).norm()
    assert (gradient - exact_gradient).norm() < 2 * (same_gradient - exact_gradient).norm()
    assert_same(fast, model, x)  # outside autocast the weights are exact again


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_of_the_model_can_change(dtype):
    model, x = resnet(None), torch.rand(4, 3, 16, 16)
    fast = FoldedModel(model)
    assert_same(fast, model, x)
    model.to(dtype)
    with frozen(model):
        torch.testing.assert_close(fast.refresh()(x.to(dtype)), model(x.to(dtype)), rtol=0.05, atol=0.05)
    assert {layer.copy.weight.dtype for layer in fast._folding.layers} == {dtype}


def test_a_model_in_half_precision_is_checked_in_single_precision():
    model = resnet().bfloat16()
    fast = FoldedModel(model)
    with frozen(model):
        assert fast.refresh()(torch.rand(4, 3, 16, 16).bfloat16()).dtype == torch.bfloat16
    assert fast.folded


def network(name):
    return NETS[name]() if name in NETS else nets.TimmNet(name, **TIMM[name])


@pytest.mark.parametrize("name", [*sorted({*NETS} - NOT_FOLDED), *TIMM])
def test_networks_of_the_package_and_of_timm_fold(name):
    model, x = Classifier(network(name), dataset_spec("cifar10")), torch.rand(3, 3, 32, 32)
    fast = FoldedModel(model)
    with frozen(model):
        fast.refresh()(x)
    train(model, 1, size=32)
    assert_same(fast, model, x)
    assert fast.folded


def test_all_networks_of_the_package_are_covered():
    exported = {name for name in nets.__all__ if inspect.isclass(getattr(nets, name))}
    assert exported == {*NETS, "RandomSelfEnsemble", "TimmNet", "TorchvisionNet"}


@pytest.mark.parametrize("name", sorted(NOT_FOLDED))
def test_networks_with_a_solver_are_used_themselves(name, caplog):
    model = Classifier(network(name), dataset_spec("cifar10"))
    with frozen(model):
        fast = FoldedModel(model)
        fast.refresh()(torch.rand(3, 3, 32, 32))
    assert not fast.folded
    assert f"{name} has no equivalent folded copy: " in caplog.text


class Hidden(TinyNet):
    """A part has no gradients, but initially the outputs do not depend on the images."""

    def __init__(self):
        super().__init__()
        nn.init.zeros_(self.bn.weight)

    def forward(self, x):
        with torch.no_grad():
            scale = x.mean((1, 2, 3), keepdim=True)
        return super().forward(x * scale)


class Constant(TinyNet):
    def forward(self, x):
        return self.fc(torch.zeros(len(x), 4, device=x.device) + self.fc.weight.mean())


@pytest.mark.parametrize("make", [Branching, Noisy, Hidden, Constant])
def test_a_network_that_cannot_be_traced_is_used_itself(make, capfd):
    model, (x, _) = Classifier(make(), spec()), images()
    fast = FoldedModel(model)
    random = torch.random.get_rng_state()
    for _ in range(2):
        torch.random.set_rng_state(random)
        with frozen(model):
            found = fast.refresh()(x)
            torch.random.set_rng_state(random)
            assert torch.equal(found, model(x))
    assert not fast.folded
    printed = capfd.readouterr()  # of the log at most, if earlier tests have configured a console
    assert printed.out == ""
    assert printed.err.count("\n") <= 1


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_model_is_not_modified(precision):
    model, (x, y) = resnet(), images()
    model.net.bn1.eval()
    model.net.fc.bias.requires_grad_(False)
    before, random = snapshot(model), torch.random.get_rng_state()
    values = copy.deepcopy(model.state_dict())
    model.fast_forward = FoldedModel(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        PGD(start="none", step_size=8 / 255, steps=2)(model, x, y)
    assert model.fast_forward.folded
    assert torch.equal(torch.random.get_rng_state(), random)
    del model.fast_forward
    assert snapshot(model) == before
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, values[key]) for key, tensor in model.state_dict().items())


def test_a_failure_of_the_check_restores_everything():
    model, (x, _) = tiny_classifier(), images()
    seen = []

    def fail(*_):
        seen.append(model.net.bn.weight)
        if seen[-1] is not scale:
            raise RuntimeError("other weights")

    scale, convolution = model.net.bn.weight, torch.backends.cudnn.conv.fp32_precision
    model.net.activation.register_forward_hook(fail)
    before = snapshot(model)
    fast = FoldedModel(model)
    with frozen(model):
        assert torch.equal(fast.refresh()(x), model(x))
    assert seen[0] is not scale
    assert torch.backends.cudnn.conv.fp32_precision == convolution
    assert snapshot(model) == before
    assert not fast.folded


def test_attacks_find_nearly_the_same_images():
    model, x = resnet(), torch.rand(8, 3, 16, 16)
    train(model, 5)
    y, attack = torch.arange(8), PGD(start="none", steps=4)
    expected = attack(model, x, y)
    model.fast_forward = FoldedModel(model)
    found = attack(model, x, y)
    assert model.fast_forward.folded
    assert ((found - x).sign() == (expected - x).sign()).float().mean() > 0.99


def test_a_compiled_folded_model_is_compiled_once():
    compiled = []

    def backend(graph, example_inputs):
        compiled.append(graph)
        return graph.forward

    model, (x, _) = tiny_classifier(), images()
    fast = FoldedModel(model, compile=True, _backend=backend)
    for _ in range(3):
        assert_same(fast, model, x)
        train(model, 1)
    assert fast.folded
    assert len(compiled) == 1


def test_a_copy_has_no_folded_model():
    model = tiny_classifier()
    model.fast_forward = FoldedModel(model)
    assert copy.deepcopy(model).fast_forward is None
    assert pickle.loads(pickle.dumps(model)).fast_forward is None
    assert model.fast_forward is not None
