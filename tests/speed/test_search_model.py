"""The fast path is equivalent to the model; if it cannot be, the model itself is used."""

import copy

import pytest
import torch
from helpers.devices import devices
from helpers.fakes import Branching, Noisy, TinyNet, images, spec, tiny_classifier
from torch import nn
from torch.nn import functional as F

from lightning_paf import nets
from lightning_paf.nn.activations import PSSiLU
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.modes import full_precision
from lightning_paf.nn.swap import swap_activations
from lightning_paf.speed.search_model import Passes, SearchModel


def settled(net, channels=3, size=16):
    """The network in eval mode, with other statistics than the initial ones."""
    torch.manual_seed(0)
    model = Classifier(net, spec(channels=channels)).train()
    for _ in range(3):
        model(torch.rand(16, channels, size, size))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.eval()


def swapped():
    net = nets.CifarResNet(width=4)
    swap_activations(net, PSSiLU)
    return net


NETS = {
    "post-activation": (lambda: nets.CifarResNet(width=4), 0),
    "shared parametric activation": (swapped, 0),
    "pre-activation": (lambda: nets.PreActResNet(width=4), 9),
    "wide": (lambda: nets.WideResNet(depth=10, width=1), 4),
}


@devices
@pytest.mark.parametrize("name", NETS)
def test_logits_and_gradients_are_those_of_the_model(name, device):
    make, left = NETS[name]
    model = settled(make()).to(device)
    x = torch.rand(5, 3, 16, 16).to(device).requires_grad_()
    search = SearchModel(model)
    with full_precision():
        fast, exact, expected = search(x), search.exact(x), model(x)
        gradients = [torch.autograd.grad(F.cross_entropy(z, torch.arange(5).to(device)), x)[0] for z in (fast, exact)]
    assert search.folded
    assert sum(isinstance(module, nn.BatchNorm2d) for module in search._folded.modules()) == left
    torch.testing.assert_close(fast, exact, rtol=0, atol=1e-4)
    assert torch.equal(exact, expected)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


class Viewing(TinyNet):
    """Views a map as a vector, which the channels-last layout does not allow."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(256, 10)

    def forward(self, x):
        z = self.bn(self.conv(x))
        return self.fc(z.view(z.shape[0], -1))


class Uncopyable(TinyNet):
    def __init__(self):
        super().__init__()
        self.kept = torch.ones(1, requires_grad=True) * 2


@pytest.mark.parametrize(
    ("make", "fold"), [(Branching, True), (Noisy, True), (Viewing, True), (Uncopyable, True), (TinyNet, False)]
)
def test_without_an_equivalent_copy_the_model_itself_is_used(make, fold, capfd):
    model, (x, _) = settled(make(), size=8), images()
    search = SearchModel(model, fold=fold)
    torch.manual_seed(0)
    fast = search(x)
    torch.manual_seed(0)
    assert torch.equal(fast, model(x))
    assert not search.folded
    printed = capfd.readouterr()  # of the log at most, if earlier tests have configured a console
    assert printed.out == ""
    assert printed.err.count("\n") <= 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_model_is_not_modified(precision):
    model = tiny_classifier().train()
    model.net.bn.eval()
    before = copy.deepcopy(model.state_dict())
    flags = [module.training for module in model.modules()]
    search = SearchModel(model, precision)
    x = images()[0].requires_grad_()
    torch.autograd.grad(search(x).sum(), x)
    assert [module.training for module in model.modules()] == flags
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in search._folded.parameters())


@devices
@pytest.mark.parametrize("fold", [True, False])
def test_bf16_is_close_and_returns_single_precision(fold, device):
    model = settled(nets.CifarResNet(width=4)).to(device)
    search = SearchModel(model, "bf16", fold=fold)
    x = torch.rand(4, 3, 16, 16).to(device).requires_grad_()
    fast = search(x)
    exact = search.exact(x)
    assert search.precision == "bf16"
    assert fast.dtype == exact.dtype == torch.float32
    with full_precision():
        assert torch.equal(exact, model(x))
    assert 0 < (fast - exact).abs().max() < 0.05 * exact.abs().max()
    (gradient,) = torch.autograd.grad(fast.sum(), x)
    assert gradient.dtype == torch.float32


def test_bf16_resolves_perturbations_that_bfloat16_images_would_lose():
    search = SearchModel(settled(TinyNet()), "bf16")
    x = torch.full((1, 3, 8, 8), 0.75)
    nudged = x + 1e-3
    assert torch.equal(nudged.bfloat16(), x.bfloat16())
    assert not torch.equal(search(nudged), search(x))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_callers_autocast_has_no_effect(precision):
    search = SearchModel(settled(TinyNet()), precision)
    x, _ = images()
    fast, exact = search(x), search.exact(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(search(x), fast)
        assert torch.equal(search.exact(x), exact)


@pytest.mark.parametrize("fold", [True, False])
def test_passes_are_counted(fold):
    search = SearchModel(settled(TinyNet()), fold=fold)
    x = torch.rand(11, 3, 8, 8)
    with torch.no_grad():
        search(x)
    probes = 8 if fold else 0
    assert search.passes == Passes(forward=11, backward=0, exact=probes)
    x = x[:3].requires_grad_()
    search(x)  # without its gradient
    torch.autograd.grad(search(x).sum(), x)
    torch.autograd.grad(search.exact(x).sum(), x)
    assert search.passes == Passes(forward=17, backward=6, exact=probes + 3)
    assert search.passes - Passes(forward=11) == Passes(forward=6, backward=6, exact=probes + 3)


def test_an_empty_batch_has_empty_logits():
    assert SearchModel(settled(TinyNet()))(torch.rand(0, 3, 8, 8)).shape == (0, 10)


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision must be fp32 or bf16, got 'fp16'"):
        SearchModel(TinyNet(), "fp16")


class Overflowing(TinyNet):
    """Exact in float32 only."""

    def forward(self, x):
        z = self.bn(self.conv(x)) + 1e4 - 1e4
        return self.fc(self.activation(z).mean((2, 3)))


@pytest.mark.parametrize("fold", [True, False])
def test_a_bf16_search_that_differs_is_not_used(fold, caplog):
    model, (x, _) = settled(Overflowing(), size=8), images()
    for _ in range(2):
        search = SearchModel(model, "bf16", fold=fold)
        torch.testing.assert_close(search(x), model(x), rtol=0, atol=1e-2)
        assert search.precision == "fp32"
    (record,) = caplog.records
    assert "no equivalent bf16 search: its outputs differ" in record.getMessage()
