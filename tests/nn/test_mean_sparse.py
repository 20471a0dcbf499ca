"""MeanSparse: statistics, sparsified inputs and gradients."""

import copy

import pytest
import torch
from torch import nn

from lightning_paf.nn.activations import PSSiLU
from lightning_paf.nn.mean_sparse import MeanSparse, MeanSparseNet, fit_statistics
from lightning_paf.nn.swap import swap_activations
from lightning_paf.speed.search_model import SearchModel


def net():
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 6), nn.SiLU(),
        nn.Linear(6, 5),
    )  # fmt: skip
    return layers.eval().requires_grad_(False)


@pytest.fixture
def images():
    return torch.rand(20, 3, 8, 8)


def test_without_a_threshold_nothing_changes(images):
    plain = net()
    sparse = MeanSparseNet(copy.deepcopy(plain), 5)
    assert torch.equal(sparse(images), plain(images))
    assert fit_statistics(sparse, sparse, images.split(7)) == 20
    assert torch.equal(sparse(images), plain(images))


def test_statistics_of_one_pass_are_those_of_all_inputs(images):
    plain = net()
    sparse = MeanSparseNet(copy.deepcopy(plain), 5)
    fit_statistics(sparse, sparse, images.split(7))
    first, second = sparse.sites().values()
    maps, vectors = plain[:2](images), plain[:5](images)
    torch.testing.assert_close(first.mean.flatten(), maps.mean((0, 2, 3)))
    torch.testing.assert_close(first.std.flatten(), maps.std((0, 2, 3), correction=0))
    torch.testing.assert_close(second.mean, vectors.mean(0))
    torch.testing.assert_close(second.std, vectors.std(0, correction=0))


def test_inputs_near_the_mean_become_the_mean_without_gradient():
    layer = MeanSparse(nn.Identity())
    layer.mean, layer.std = torch.tensor([1.0, -1.0]), torch.tensor([2.0, 0.5])
    layer.alpha.fill_(0.5)  # thresholds 1 and 0.25
    x = torch.tensor([[1.9, -1.2], [2.1, -1.3], [0.1, -0.7]], requires_grad=True)
    expected = torch.tensor([[1.0, -1.0], [2.1, -1.3], [1.0, -0.7]])
    torch.testing.assert_close(layer(x), expected)
    (gradient,) = torch.autograd.grad(layer(x).sum(), x)
    assert gradient.tolist() == [[0, 0], [1, 1], [0, 1]]
    layer.straight_through = True
    torch.testing.assert_close(layer(x), expected)
    assert torch.autograd.grad(layer(x).sum(), x)[0].eq(1).all()


def test_a_large_threshold_makes_the_network_constant(images):
    sparse = MeanSparseNet(net(), 5)
    fit_statistics(sparse, sparse, [images])
    sparse.set_alpha(1e6)
    assert torch.equal(sparse(images), sparse(images[:1]).expand(20, -1))
    with sparse.straight_through():
        assert all(site.straight_through for site in sparse.sites().values())
    assert not any(site.straight_through for site in sparse.sites().values())


def test_a_state_dict_restores_statistics_and_threshold_in_a_new_network(images):
    sparse = MeanSparseNet(net(), 5)
    fit_statistics(sparse, sparse, [images])
    sparse.set_alpha(0.3)
    again = MeanSparseNet(net(), 5, shapes=[site.mean.shape for site in sparse.sites().values()])
    again.load_state_dict(sparse.state_dict())
    assert torch.equal(again(images), sparse(images))
    assert not torch.equal(net()(images), sparse(images))
    with pytest.raises(ValueError, match="shapes must be those of 2 activations, got 1"):
        MeanSparseNet(net(), 5, shapes=[()])


def test_shared_activations_have_a_site_for_each_place_and_can_be_swapped(images):
    shared = net()
    shared[5] = shared[2]
    sparse = MeanSparseNet(shared, 5)
    assert len(sparse.sites()) == 2
    swap_activations(sparse, PSSiLU)
    fit_statistics(sparse, sparse, [images])
    assert {type(site.activation) for site in sparse.sites().values()} == {PSSiLU}
    assert [site.mean.numel() for site in sparse.sites().values()] == [4, 6]


def test_the_fast_path_of_attacks_is_the_same_function(images):
    sparse = MeanSparseNet(net(), 5)
    fit_statistics(sparse, sparse, [images])
    sparse.set_alpha(0.2)
    search = SearchModel(sparse)
    torch.testing.assert_close(search(images), sparse(images), atol=1e-4, rtol=1e-4)


def test_networks_that_do_not_fit_are_refused(images):
    with pytest.raises(ValueError, match="Sequential must have activation modules for MeanSparse, got none"):
        MeanSparseNet(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
    unused = net()
    unused.other = nn.ReLU()
    unused.forward = nn.Sequential(*list(unused)[:2]).forward
    sparse = MeanSparseNet(unused)
    with pytest.raises(ValueError, match="must be used by the network for MeanSparse, got no call"):
        fit_statistics(sparse, sparse, [images])

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.first, self.second = nn.ReLU(), nn.Linear(3, 4), nn.Linear(4, 5)

        def forward(self, x):
            return self.act(self.second(self.act(self.first(x.mean((2, 3))))))

    twice = MeanSparseNet(Twice())
    with pytest.raises(ValueError, match="must have one number of channels for MeanSparse, got 4 and 5"):
        fit_statistics(twice, twice, [images])
