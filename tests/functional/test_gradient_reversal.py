import pytest
import torch

from lightning_paf.functional.gradient_reversal import reversal_schedule, reverse_gradient


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, torch.tensor(0.3)])
def test_forward_is_the_identity_and_the_gradient_is_reversed(factor):
    x = torch.randn(4, 3, requires_grad=True)
    upstream = torch.randn(4, 3)
    result = reverse_gradient(x, factor)
    assert torch.equal(result, x)
    (gradient,) = torch.autograd.grad(result, x, upstream)
    torch.testing.assert_close(gradient, -factor * upstream)


def test_second_derivatives():
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad((reverse_gradient(x, 0.5) ** 3).sum(), x, create_graph=True)
    torch.testing.assert_close(gradient, -1.5 * x**2)
    assert torch.autograd.grad(gradient.sum(), x)[0].abs().sum() > 0


def test_the_schedule_is_the_published_one():
    values = [reversal_schedule(step / 100) for step in range(101)]
    assert values[0] == 0
    assert values[1] == pytest.approx(0.05, abs=1e-3)
    assert values[10] == pytest.approx(0.46, abs=5e-3)
    assert values[50] == pytest.approx(0.99, abs=5e-3)
    assert values[100] == pytest.approx(0.99991, abs=1e-5)
    assert values == sorted(set(values))
