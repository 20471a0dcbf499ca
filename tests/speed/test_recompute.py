"""Recomputed outputs of activations: saved memory and unchanged gradients."""

import pytest
import torch
from helpers.fakes import images
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_paf.attacks import PGD
from lightning_paf.nets import CifarResNet
from lightning_paf.nn.activations import PSSiLU, fuse_activations
from lightning_paf.nn.modes import frozen
from lightning_paf.nn.swap import swap_activations
from lightning_paf.speed.recompute import recomputed_outputs


def network(activation=PSSiLU):
    torch.manual_seed(0)
    net = CifarResNet(18, width=4)
    swap_activations(net, activation)
    return net


def gradients(net, x, y):
    loss = cross_entropy(net(x), y)
    return torch.autograd.grad(loss, list(net.parameters()))


def saved_bytes(net, x):
    """Bytes of the tensors that a graph holds, each storage once."""
    storages: dict[int, int] = {}

    def pack(saved: Tensor) -> Tensor:
        storages[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        graph = net(x)
    assert graph.requires_grad
    return sum(storages.values())


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_are_bit_identical_inside_and_after_the_context(fused):
    net, (x, y) = network(), images(4)
    fuse_activations(net, fused)
    expected = gradients(net, x, y)
    with recomputed_outputs(net):
        found = gradients(net, x, y)
        loss = cross_entropy(net(x), y)
    assert all(map(torch.equal, found, expected))
    assert all(map(torch.equal, torch.autograd.grad(loss, list(net.parameters())), expected))


def test_hooked_layers_are_not_recomputed():
    net, (x, y) = network(), images(4)
    for layer in net.modules():
        if isinstance(layer, PSSiLU):
            layer.register_forward_pre_hook(lambda _, inputs: (0.5 * inputs[0],))
    expected = gradients(net, x, y)
    with recomputed_outputs(net):
        assert all(map(torch.equal, gradients(net, x, y), expected))


class Watched(PSSiLU):
    """Records the storages of its outputs and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: list[torch.UntypedStorage] = []
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = super().forward(x)
        self.storages.append(y.untyped_storage())
        return y


def alive(watched):
    """Number of outputs with references outside the test."""
    return sum(torch._C._storage_Use_Count(s._cdata) > 1 for s in watched.storages)


def chain():
    """Three convolutions with activations between them, whose outputs only the next layer uses."""
    watched = Watched()
    return watched, nn.Sequential(nn.Conv2d(3, 4, 3), watched, nn.Conv2d(4, 4, 3), watched, nn.Conv2d(4, 4, 3))


def test_outputs_are_released_and_recomputed_once():
    (watched, net), (x, _) = chain(), images(2)
    kept = net(x).sum()
    assert alive(watched) == 2
    watched.storages.clear()
    with recomputed_outputs(net):
        released = net(x).sum()
    assert alive(watched) == 0
    watched.calls = 0
    expected = torch.autograd.grad(kept, list(net.parameters()))
    assert watched.calls == 0
    assert all(map(torch.equal, torch.autograd.grad(released, list(net.parameters())), expected))
    assert watched.calls == 2


def test_an_output_that_was_modified_in_place_is_saved():
    class Adds(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.add_(1)

    torch.manual_seed(0)
    net, (x, _) = nn.Sequential(nn.Conv2d(3, 4, 3), PSSiLU(), Adds(), nn.Conv2d(4, 4, 3)), images(2)
    expected = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    with recomputed_outputs(net):
        found = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    assert all(map(torch.equal, found, expected))


def test_an_attack_inside_finds_the_same_images():
    (watched, body), (x, y) = chain(), images(2)
    net = nn.Sequential(body, nn.Flatten(), nn.LazyLinear(10))
    net(x)
    attack = PGD(steps=2, start="none")
    expected = attack(net, x, y)
    watched.storages.clear()
    with recomputed_outputs(net):
        found = attack(net, x, y)
        assert alive(watched) == 0
        with frozen(net):
            logits = net(x.requires_grad_())
            assert alive(watched) == 2  # no recomputation in a frozen network
            assert logits.requires_grad
    assert torch.equal(found, expected)


def test_second_derivatives_are_unchanged():
    net, (x, y) = network(), images(2)

    def penalty():
        z = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(net(z), y), z, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), list(net.parameters()), allow_unused=True)

    expected = penalty()
    with recomputed_outputs(net):
        found = penalty()
    for a, b in zip(found, expected, strict=True):
        assert (a is None and b is None) or torch.allclose(a, b, rtol=1e-4, atol=1e-7)


def test_hooks_are_removed():
    net = network()
    with pytest.raises(RuntimeError, match="on purpose"), recomputed_outputs(net):
        raise RuntimeError("on purpose")
    assert not any(module._forward_hooks for module in net.modules())


def test_a_network_with_relu_saves_the_same():
    net, (x, _) = network(nn.ReLU), images(2)
    expected = saved_bytes(net, x)
    with recomputed_outputs(net):
        assert saved_bytes(net, x) == expected
