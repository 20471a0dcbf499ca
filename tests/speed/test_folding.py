"""Layers that fold, layers that must not, and models that are not modified."""

import copy

import pytest
import torch
from helpers.fakes import Branching, Noisy, TinyNet
from torch import nn
from torch.nn import functional as F

from lightning_paf.nn.modes import frozen
from lightning_paf.speed.folding import Folding


def randomised(net):
    """Replace the initial statistics, scales and shifts."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                if tensor is not None:
                    nn.init.uniform_(tensor, 0.5, 1.5)
    return net.eval()


def norms(net):
    return sum(isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm) for module in net.modules())


class Twice(TinyNet):
    """One convolution with two normalisations."""

    def __init__(self):
        super().__init__(channels=4)
        self.other = nn.BatchNorm2d(4)

    def forward(self, x):
        x = torch.cat([x, x[:, :1]], dim=1)
        return self.fc(self.other(self.conv(self.activation(self.bn(self.conv(x))))).mean((2, 3)))


class Reused(TinyNet):
    """The output of the convolution is used with and without normalisation."""

    def forward(self, x):
        z = self.conv(x)
        return self.fc((z + self.bn(z)).mean((2, 3)))


class Standardised(nn.Conv2d):
    """Standardises its weights, which would undo the folding."""

    def forward(self, x):
        return self._conv_forward(x, self.weight / (self.weight.std() + 1e-3), self.bias)


class Rectified(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).relu()


class Padded(nn.Conv2d):
    """An affine subclass."""

    def forward(self, x):
        return super().forward(F.pad(x, (1, 0, 1, 0)))


class Scaled(nn.Linear):
    def forward(self, x):
        return super().forward(x) * self.weight.norm()


class Cosine(TinyNet):
    """Calls its last layer and also uses its weight."""

    def forward(self, x):
        z = self.bn(self.conv(x)).mean((2, 3))
        return F.linear(z, self.fc.weight) + self.fc(z)


class Part(TinyNet):
    """Calls a layer and also a part of it."""

    def __init__(self):
        super().__init__(width=4)
        self.attention = nn.MultiheadAttention(4, 1, batch_first=True)

    def forward(self, x):
        z = self.bn(self.conv(x)).flatten(2).transpose(1, 2)
        return self.fc(self.attention.out_proj(self.attention(z, z, z)[0]).mean(1))


class Derived(TinyNet):
    """Uses the result of a computation with a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.1, 0.2, 0.3]))

    def forward(self, x):
        return super().forward(x - self.mean.view(1, -1, 1, 1))


def with_layers(**layers):
    net = TinyNet()
    for name, layer in layers.items():
        setattr(net, name, layer)
    return net


@pytest.mark.parametrize(
    ("make", "left", "layers"),
    [
        (TinyNet, 0, 2),
        (Twice, 2, 2),
        (Reused, 1, 2),
        (lambda: with_layers(conv=Standardised(3, 4, 3)), 1, 1),
        (lambda: with_layers(conv=Rectified(3, 4, 3)), 1, 1),
        (lambda: with_layers(conv=Padded(3, 4, 3, padding=1)), 0, 2),
        (lambda: with_layers(conv=nn.Conv2d(3, 4, 3, bias=True)), 0, 2),
        (lambda: with_layers(conv=nn.Conv2d(3, 4, 3, padding_mode="reflect", padding=1, stride=2)), 0, 2),
        (lambda: with_layers(conv=nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))), 1, 1),
        (lambda: with_layers(bn=nn.BatchNorm2d(4, affine=False)), 0, 2),
        (lambda: with_layers(bn=nn.BatchNorm2d(4, track_running_stats=False)), 1, 2),
        (lambda: with_layers(bn=nn.SyncBatchNorm(4)), 0, 2),
        (lambda: with_layers(fc=Scaled(4, 10)), 0, 1),
        (Cosine, 0, 2),
        (Part, 0, 3),
        (Derived, 0, 2),
    ],
)
def test_only_affine_layers_are_folded(make, left, layers):
    net, x = randomised(make()), torch.rand(4, 3, 8, 8)
    before = [(name, id(module)) for name, module in net.named_modules()]
    folding = Folding(net)
    for _ in range(2):
        folding.refresh()
        torch.testing.assert_close(folding.net(x), net(x), rtol=1e-4, atol=1e-5)
        assert norms(folding.net) == left
        assert len(folding.layers) == layers
        assert before == [(name, id(module)) for name, module in net.named_modules()]
        randomised(net)
        with torch.no_grad():
            for tensor in net.parameters():
                tensor.mul_(1.5).add_(0.1)


@pytest.mark.parametrize(("name", "left", "layers"), [("conv", 1, 1), ("bn", 1, 2), ("fc", 0, 1)])
def test_a_layer_with_a_hook_is_not_folded(name, left, layers):
    net, x = randomised(TinyNet()), torch.rand(4, 3, 8, 8)
    getattr(net, name).register_forward_hook(lambda _, __, output: 2 * output)
    folding = Folding(net)
    folding.refresh()
    torch.testing.assert_close(folding.net(x), net(x))
    assert (norms(folding.net), len(folding.layers)) == (left, layers)


def test_weights_of_zero_do_not_hide_a_standardisation():
    net = randomised(with_layers(conv=Standardised(3, 4, 3)))
    nn.init.zeros_(net.conv.weight)
    assert norms(Folding(net).net) == 1


class Counting(TinyNet):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class Keeping(TinyNet):
    def forward(self, x):
        self.fc.seen = x.mean()
        return super().forward(x)


@pytest.mark.parametrize("make", [Counting, Keeping, Branching, Noisy])
def test_a_network_that_cannot_be_traced_is_refused_and_restored(make):
    net = make().eval()
    before = copy.deepcopy(net)
    with pytest.raises((TypeError, torch.fx.proxy.TraceError)):
        Folding(net)
    for module, same in zip(net.modules(), before.modules(), strict=True):
        assert vars(module).keys() == vars(same).keys()
    assert all(torch.equal(tensor, before.state_dict()[name]) for name, tensor in net.state_dict().items())


def test_a_compiled_module_is_traced():
    net, x = randomised(nn.Sequential(TinyNet(), nn.Identity())), torch.rand(4, 3, 8, 8)
    expected = net(x)
    net[0].compile(backend="eager")
    folding = Folding(net)
    folding.refresh()
    assert norms(folding.net) == 0
    torch.testing.assert_close(folding.net(x), expected)


def test_half_precision_weights_are_folded_in_single_precision():
    net = randomised(TinyNet())
    net.conv.bfloat16()
    folding = Folding(net)
    folding.refresh()
    [conv] = [layer for layer in folding.layers if isinstance(layer.source, nn.Conv2d)]
    scale = net.bn.weight / (net.bn.running_var + net.bn.eps).sqrt()
    expected = (net.conv.weight.float() * scale.view(-1, 1, 1, 1)).bfloat16()
    assert torch.equal(conv.copy.weight, expected)


def test_replaced_buffers_are_found():
    """Moving a model to another device replaces its buffers."""
    net, x = randomised(Derived()), torch.rand(4, 3, 8, 8)
    folding = Folding(net)
    folding.refresh()
    net.mean = torch.tensor([0.5, 0.6, 0.7])
    net.bn.running_mean = net.bn.running_mean + 1
    folding.refresh()
    torch.testing.assert_close(folding.net(x), net(x))


def test_gradients_reach_images_only():
    net, x = randomised(TinyNet()), torch.rand(4, 3, 8, 8, requires_grad=True)
    folding = Folding(net)
    folding.refresh()
    with frozen(net):
        folding.net(x).sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(layer.copy.weight.requires_grad for layer in folding.layers)
