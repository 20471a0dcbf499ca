"""Largest singular values against dense Jacobians, closed forms and measured growth."""

import copy

import pytest
import torch
from helpers.every_net import build
from helpers.fakes import spec
from torch import nn
from torch.func import jacrev

from lightning_paf import nets
from lightning_paf.nets import VGG16BN, CifarResNet, CoViT, SmallConvNet, ViT, WideResNet, ZeroSNet
from lightning_paf.nn.activations import PSSiLU, fuse_activations
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.jacobian_spectrum import jacobian_spectrum, spectral_norm
from lightning_paf.nn.residual_chain import ResidualChain
from lightning_paf.nn.swap import swap_activations

SIZES = {"image_size": 8, "patch": 4, "width": 16, "depth": 2}
RESIDUAL = dict.fromkeys((nets.CifarResNet, nets.DMPreActResNet, nets.PreActResNet), 8)
RESIDUAL |= dict.fromkeys((nets.DMWideResNet, nets.WideResNet), 3) | dict.fromkeys((nets.CoViT, nets.ViT), 2)
RESIDUAL |= {nets.GatedResNet: 10} | dict.fromkeys((nets.NODE, nets.ODENet, nets.TisODENet), 1)
"""Number of blocks of each network with residual blocks; gates and ODE blocks are blocks."""


def classifier(net, double=True):
    model = Classifier(net, spec()).eval()
    return model.double() if double else model


def small_vit(cls=ViT):
    torch.manual_seed(0)
    return classifier(cls(**SIZES))


def images(n=2, size=8):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def dense(f, z):
    """Jacobian of one sample as a matrix."""
    return jacrev(lambda one: f(one[None])[0])(z).reshape(f(z[None]).numel(), z.numel())


def test_the_value_of_a_linear_map_is_that_of_its_matrix():
    torch.manual_seed(0)
    layer = nn.Linear(12, 7).double()
    found = spectral_norm(layer, torch.randn(5, 12, dtype=torch.float64), 100)
    torch.testing.assert_close(found, torch.linalg.svdvals(layer.weight)[:1].expand(5).detach(), rtol=1e-4, atol=0)
    assert spectral_norm(lambda z: 0 * z, torch.randn(2, 3)).tolist() == [0, 0]


@pytest.mark.parametrize("cls", [ViT, CoViT])
def test_power_iteration_agrees_with_dense_jacobians(cls):
    model, x = small_vit(cls), images(1)
    found, chain = jacobian_spectrum(model, x, 200), ResidualChain(model, x)
    states = chain.states(x)
    for name, f, points, sigma in [
        ("embedding", chain.embed, x, found.embedding),
        ("head", lambda z: chain.head(z, x[:1]), states[-1], found.head),
        *((k, chain.blocks[f"net.{k}"], states[n], v) for n, (k, v) in enumerate(found.blocks.items())),
    ]:
        jacobians = [dense(f, point) for point in points]
        exact = torch.stack([torch.linalg.matrix_norm(jacobian, 2) for jacobian in jacobians])
        torch.testing.assert_close(sigma, exact.detach(), rtol=1e-4, atol=0, msg=name)
        for jacobian, value in zip(jacobians, sigma, strict=True):
            upper = torch.linalg.matrix_norm(jacobian, 1) * torch.linalg.matrix_norm(jacobian, torch.inf)
            v = torch.randn(jacobian.shape[1], 50, dtype=torch.float64)
            assert upper.sqrt() >= value >= ((jacobian @ v).norm(dim=0) / v.norm(dim=0)).max()
    identity = torch.eye(states[0][0].numel(), dtype=torch.float64)
    expected = torch.linalg.matrix_norm(dense(chain.blocks["net.blocks.0"], states[0][0]) - identity, 2)
    torch.testing.assert_close(found.residual["blocks.0"][0], expected.detach(), rtol=1e-4, atol=0)


def test_branches_have_the_values_of_their_own_jacobians():
    model, x = small_vit(), images(1)
    found, block = jacobian_spectrum(model, x, 200).branches, model.net.blocks[0]
    z = ResidualChain(model, x).embed(x)
    for name, branch in block.branches().items():
        exact = torch.linalg.matrix_norm(dense(branch, z[0]), 2)
        torch.testing.assert_close(found[f"blocks.0.{name}"], exact[None].detach(), rtol=1e-4, atol=0)
        z = z + branch(z)
    assert list(found) == [f"blocks.{n}.{name}" for n in range(2) for name in ("mixer", "mlp")]


@pytest.mark.parametrize("make", [small_vit, lambda: classifier(CifarResNet(width=2))])
def test_no_small_perturbation_grows_by_more_than_the_bound(make):
    model, x = make(), images(3)
    found, chain = jacobian_spectrum(model, x, 30), ResidualChain(model, x)
    bounds = found.log_bounds()
    assert (bounds["product"] <= bounds["residual"] + 1e-9).all()
    assert (bounds["residual"] <= bounds["exponential"]).all()
    delta = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    delta *= 1e-4 / delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    before, after = chain.states(x), chain.states(x + delta)
    growth = [(b - a).flatten(1).norm(dim=1) for a, b in zip(before, after, strict=True)]
    assert (growth[0] <= found.embedding * 1e-4 * 1.01).all()
    assert (growth[-1] / growth[0] <= bounds["product"].exp() * 1.01).all()
    assert ((model(x + delta) - model(x)).norm(dim=1) <= found.head * growth[-1] * 1.01).all()


@pytest.mark.parametrize("cls", RESIDUAL, ids=lambda cls: cls.__name__)
def test_embedding_blocks_and_head_of_every_residual_network_compose(cls):
    model, x = classifier(build(cls, in_channels=3)), images(2, 32)
    before = [(name, id(module)) for name, module in model.named_modules()]
    chain = ResidualChain(model, x)
    assert len(chain.blocks) == RESIDUAL[cls]
    torch.testing.assert_close(chain.head(chain.states(x)[-1], x), model(x))
    assert before == [(name, id(module)) for name, module in model.named_modules()]


def test_the_spectrum_is_that_of_the_parametric_activation_and_leaves_the_model_unchanged():
    net = WideResNet(10, 1)
    swap_activations(net, PSSiLU)
    model, x = classifier(net, double=False).train(), images().float()
    fuse_activations(model)
    state = copy.deepcopy(model.state_dict())
    generator = torch.get_rng_state()
    found = jacobian_spectrum(model, x, 3)
    assert torch.equal(generator, torch.get_rng_state())
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert net.activation.fused
    assert not found.embedding.requires_grad
    with torch.no_grad():
        again = jacobian_spectrum(model, x, 3)
    torch.testing.assert_close(again.head, found.head)


@pytest.mark.parametrize("net", [SmallConvNet(3), VGG16BN(width=4), ZeroSNet(8, width=4)])
def test_a_network_without_residual_blocks_is_refused(net):
    with pytest.raises(ValueError, match=f"must have residual blocks that each run once, got {type(net).__name__}"):
        jacobian_spectrum(classifier(net), images(1, 32))


def test_a_number_of_iterations_below_one_is_refused():
    with pytest.raises(ValueError, match="iterations must be at least 1, got 0"):
        jacobian_spectrum(small_vit(), images(), 0)
