"""Softened activations: closed forms, limits, and every way to call them."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from lightning_paf.nn import activations
from lightning_paf.nn.softened import SoftenedModel
from lightning_paf.speed.search_model import SearchModel

SHIFTS = torch.tensor([math.log(share / (1 - share)) for share in (1 / 6, 1 / 2, 5 / 6)])
BASES = {"fuse_activations", "Activation", "ParametricActivation"}
EVERY = [getattr(activations, name) for name in activations.__all__ if name not in BASES]


def network(activation, width=6):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, width), activation, nn.Linear(width, 3)).eval()


def images(count=5):
    return torch.rand(count, 1, 2, 2, generator=torch.Generator().manual_seed(1))


class Functional(nn.Module):
    """The same network with a function."""

    def __init__(self, net, function):
        super().__init__()
        self.net, self.function = net, function

    def forward(self, x):
        return self.net[3](self.function(self.net[1](self.net[0](x))))


@pytest.mark.parametrize("kind", [*EVERY, nn.ReLU, nn.LeakyReLU, nn.GELU], ids=lambda kind: kind.__name__)
def test_at_width_0_the_logits_are_unchanged_and_the_limit_is_continuous(kind):
    net, x = network(kind()), images()
    softened = SoftenedModel(net)
    torch.testing.assert_close(softened(x, torch.zeros(5)), net(x))
    torch.testing.assert_close(softened(x, torch.full((5,), 1e-6)), net(x), rtol=1e-4, atol=1e-4)
    assert (softened(x, torch.ones(5)) != net(x)).any()


def test_an_activation_is_averaged_over_shifts_by_the_size_of_its_inputs():
    net, x = network(nn.ReLU()), images()
    inner = net[1](net[0](x))
    size = inner.square().mean(1).sqrt()
    softness = torch.tensor([0.0, 0.1, 0.5, 1.0, 2.0])
    shifts = (softness * size)[:, None, None] * SHIFTS
    expected = net[3](F.relu(inner[:, :, None] + shifts[:, :1]).mean(2))
    torch.testing.assert_close(SoftenedModel(net)(x, softness), expected)


def test_it_comes_close_to_softplus():
    """Three quantiles replace all of the logistic distribution; the difference is largest at the outer ones."""
    x = torch.linspace(-3, 3, 601)
    found = F.relu(x[:, None] + SHIFTS).mean(1)
    assert (F.softplus(x) - found).min() > 0
    assert (F.softplus(x) - found).max() < math.log(6 / 5) + 1e-4


def test_a_unit_that_is_off_passes_a_gradient():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 2)).eval()
    with torch.no_grad():
        net[1].bias.fill_(-2.0)
        net[1].weight.uniform_(-0.1, 0.1)
    x = images(1).requires_grad_()
    assert torch.autograd.grad(net(x).square().sum(), x)[0].abs().sum() == 0
    soft = SoftenedModel(net)(x, torch.ones(1))
    assert torch.autograd.grad(soft[0, 0], x)[0].abs().sum() > 0


def test_the_width_follows_the_scale_of_the_weights():
    net, x = network(nn.ReLU()), images()
    larger = network(nn.ReLU())
    with torch.no_grad():
        larger[1].weight.mul_(10), larger[1].bias.mul_(10), larger[3].weight.div_(10)
    softness = torch.full((5,), 0.5)
    torch.testing.assert_close(SoftenedModel(larger)(x, softness), SoftenedModel(net)(x, softness))


def test_an_image_has_the_same_logits_alone():
    softened, x = SoftenedModel(network(nn.ReLU())), images()
    softness = torch.tensor([0.0, 0.1, 0.5, 1.0, 2.0])
    together = softened(x, softness)
    for row in range(5):
        torch.testing.assert_close(softened(x[row : row + 1], softness[row : row + 1])[0], together[row])


@pytest.mark.parametrize(("function", "layer"), [(F.relu, nn.ReLU()), (torch.tanh, nn.Tanh()), (F.silu, nn.SiLU())])
def test_functions_of_a_graph_are_softened_like_layers(function, layer):
    net, x, softness = network(layer), images(), torch.full((5,), 0.5)
    traced = fx.symbolic_trace(Functional(net, function))
    before = traced.code
    torch.testing.assert_close(SoftenedModel(traced)(x, softness), SoftenedModel(net)(x, softness))
    torch.testing.assert_close(traced(x), net(x))
    assert traced.code == before


def test_a_shared_activation_is_softened_once_everywhere():
    relu = nn.ReLU()
    shared = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), relu, nn.Linear(4, 4), relu, nn.Linear(4, 3)).eval()
    separate = nn.Sequential(*[nn.ReLU() if layer is relu else layer for layer in shared]).eval()
    x, softness = images(), torch.full((5,), 0.5)
    torch.testing.assert_close(SoftenedModel(shared)(x, softness), SoftenedModel(separate)(x, softness))
    assert shared[2] is relu, "not modified"


def test_layers_that_merge_images_use_the_mean_softness():
    class Halves(nn.Module):
        def forward(self, x):
            return x.reshape(2 * len(x), -1)

    net = nn.Sequential(nn.Flatten(), Halves(), nn.ReLU(), nn.Unflatten(0, (-1, 2)), nn.Flatten()).eval()
    x = images() - 0.5
    found = SoftenedModel(net)(x, torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0]))
    torch.testing.assert_close(found, SoftenedModel(net)(x, torch.full((5,), 0.6)))


@pytest.mark.parametrize("fold", [True, False])
def test_a_search_model_softens_its_fast_path_and_counts_the_passes(fold):
    net, x, softness = network(nn.ReLU()), images(), torch.full((5,), 0.5)
    search = SearchModel(net, fold=fold)
    search(x)
    before = search.passes.forward
    found = search.softened(x.requires_grad_(), softness)
    torch.testing.assert_close(found, SoftenedModel(net)(x, softness))
    found.sum().backward()
    assert (search.passes.forward - before, search.passes.backward) == (5, 5)


def test_a_network_that_cannot_be_copied_is_searched_unchanged(caplog):
    class Uncopied(nn.Sequential):
        def __deepcopy__(self, memo):
            raise RuntimeError("has a lock")

    net, x = Uncopied(*network(nn.ReLU())).eval(), images()
    search = SearchModel(net)
    search(x)
    torch.testing.assert_close(search.softened(x, torch.ones(5)), net(x))
    assert "softens no activations: the network cannot be copied (has a lock)" in caplog.text
