"""The neural tangent kernel: closed forms, and empirical kernels of wide networks."""

import math
from itertools import pairwise

import pytest
import torch
from torch.func import functional_call, jacrev, vmap

from lightning_paf.functional.neural_tangent_kernel import gram_matrix, neural_tangent_kernel

NEAR = {"atol": 1e-5, "rtol": 1e-6}  # the rounding of an angle of 0 or pi


def vectors(n: int, d: int = 6) -> torch.Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
def test_the_diagonal_is_linear_in_the_depth(depth):
    x = vectors(4)
    expected = (depth + 1) * x.square().sum(1) / 6
    torch.testing.assert_close(gram_matrix(x, depth).diagonal(), expected, rtol=1e-15, atol=0)
    recursion = neural_tangent_kernel(x, x, depth).diagonal()
    torch.testing.assert_close(recursion, expected, rtol=1e-5, atol=0)


def test_orthogonal_and_opposite_vectors_have_closed_forms():
    x = torch.tensor([[3.0, 0, 0]], dtype=torch.float64)
    z = torch.tensor([[0.0, 3, 0], [-3, 0, 0]], dtype=torch.float64)
    q = 9 / 3
    torch.testing.assert_close(
        neural_tangent_kernel(x, z, 1)[0], torch.tensor([q / math.pi, 0]).double(), atol=1e-5, rtol=1e-6
    )
    # Two layers: S_1 = q / pi at orthogonal vectors and 0 at opposite ones, and T_2 = S_2 + T_1 (pi - t) / pi.
    c = 1 / math.pi
    angle = math.acos(c)
    second = q * ((math.sqrt(1 - c**2) + (math.pi - angle) * c) / math.pi + c * (math.pi - angle) / math.pi)
    expected = torch.tensor([second, q / math.pi]).double()
    torch.testing.assert_close(neural_tangent_kernel(x, z, 2)[0], expected, **NEAR)


def test_without_hidden_layers_it_is_linear_and_always_homogeneous():
    x, z = vectors(3), vectors(5)
    torch.testing.assert_close(neural_tangent_kernel(x, z, 0), x @ z.T / 6)
    torch.testing.assert_close(neural_tangent_kernel(2 * x, z, 3), 2 * neural_tangent_kernel(x, z, 3))
    assert neural_tangent_kernel(0 * x, z, 3).abs().max() < 1e-11


def test_it_is_symmetric_positive_definite_and_independent_of_blocks():
    gram = gram_matrix(vectors(20), 3)
    torch.testing.assert_close(gram, gram.T)
    assert torch.linalg.eigvalsh(gram).min() > 0
    torch.testing.assert_close(neural_tangent_kernel(vectors(20), vectors(20), 3, rows=7), gram, rtol=1e-5, atol=0)


@pytest.mark.parametrize("same", [True, False])
def test_derivatives_are_finite_at_equal_vectors_and_those_of_differences_elsewhere(same):
    x, z = vectors(2).requires_grad_(), vectors(2) if same else vectors(3)
    (gradient,) = torch.autograd.grad(neural_tangent_kernel(x, z, 2).sum(), x)
    assert gradient.isfinite().all()
    if not same:
        assert torch.autograd.gradcheck(lambda x: neural_tangent_kernel(x, z, 2), x)


class Wide(torch.nn.Module):
    """A ReLU network without biases in the NTK parametrisation."""

    def __init__(self, d: int, width: int, depth: int) -> None:
        super().__init__()
        sizes = [d, *[width] * depth, 1]
        self.weights = torch.nn.ParameterList(torch.randn(m, n) for n, m in pairwise(sizes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for number, weight in enumerate(self.weights):
            x = (x.relu() * math.sqrt(2) if number else x) @ weight.T / math.sqrt(weight.shape[1])
        return x.squeeze(-1)


@pytest.mark.parametrize("depth", [1, 2])
def test_it_is_the_mean_empirical_kernel_of_wide_networks(depth):
    torch.manual_seed(0)
    x, found, nets = vectors(4).float(), torch.zeros(4, 4), 40
    for _ in range(nets):
        net = Wide(6, 300, depth)
        parameters = dict(net.named_parameters())
        jacobians = vmap(jacrev(lambda p, x, net=net: functional_call(net, p, (x,))), (None, 0))(parameters, x)
        rows = torch.cat([jacobian.flatten(1) for jacobian in jacobians.values()], 1)
        found += (rows @ rows.T / nets).detach()
    expected = gram_matrix(x.double(), depth).float()
    assert float((found - expected).norm() / expected.norm()) < 0.03
