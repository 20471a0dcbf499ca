"""What a layer keeps for the backward pass."""

import pytest
import torch
from helpers.fakes import images
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_paf.attacks import PGD
from lightning_paf.nets import CifarResNet
from lightning_paf.nn.activations import PSSiLU
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


def bytes_kept(net, x):
    """Of the tensors that the graph of a forward pass holds, each storage once."""
    storages: dict[int, int] = {}

    def pack(saved: Tensor) -> Tensor:
        storages[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        graph = net(x)
    assert graph.requires_grad
    return sum(storages.values())


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_are_bit_identical(fused):
    net, (x, y) = network(), images(4)
    for layer in net.modules():
        if isinstance(layer, PSSiLU):
            layer.fused = fused
    expected = gradients(net, x, y)
    with recomputed_outputs(net):
        found = gradients(net, x, y)
    assert all(map(torch.equal, found, expected))


def test_the_backward_pass_may_come_after_the_context():
    net, (x, y) = network(), images(4)
    expected = gradients(net, x, y)
    with recomputed_outputs(net):
        loss = cross_entropy(net(x), y)
    assert all(map(torch.equal, torch.autograd.grad(loss, list(net.parameters())), expected))


class Watched(PSSiLU):
    """Counts how often its outputs are still alive after a forward pass."""

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
    """Outputs that somebody beside the test refers to."""
    return sum(torch._C._storage_Use_Count(s._cdata) > 1 for s in watched.storages)


def chain():
    """Three convolutions and activations between them: the outputs serve nothing but the next layer."""
    watched = Watched()
    return watched, nn.Sequential(nn.Conv2d(3, 4, 3), watched, nn.Conv2d(4, 4, 3), watched, nn.Conv2d(4, 4, 3))


def test_outputs_are_let_go_and_computed_again_once():
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


def test_an_output_that_was_changed_in_place_is_kept():
    class Adds(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.add_(1)

    torch.manual_seed(0)
    net, (x, _) = nn.Sequential(nn.Conv2d(3, 4, 3), PSSiLU(), Adds(), nn.Conv2d(4, 4, 3)), images(2)
    expected = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    with recomputed_outputs(net):
        found = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    assert all(map(torch.equal, found, expected))


def test_an_attack_inside_keeps_nothing_alive_and_finds_the_same():
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
            assert alive(watched) == 2  # the graph of a frozen network is left as it is
            assert logits.requires_grad
    assert torch.equal(found, expected)


def test_second_derivatives_pass_through():
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


def test_no_hooks_are_left():
    net = network()
    with pytest.raises(RuntimeError, match="on purpose"), recomputed_outputs(net):
        raise RuntimeError("on purpose")
    assert not any(module._forward_hooks for module in net.modules())


def test_a_network_with_relu_is_untouched():
    net, (x, _) = network(nn.ReLU), images(2)
    expected = bytes_kept(net, x)
    with recomputed_outputs(net):
        assert bytes_kept(net, x) == expected
