"""Closed forms of the attention and of the effect of a move; fits of separable data."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_paf.synthesis.ladder.attention_svm import AttentionSVM, fit_attention_svm

D = 6


def random_svm(pairs=2, width=D, temperature=1.0, scale=1.0) -> AttentionSVM:
    torch.manual_seed(0)
    shapes = ((pairs, width), (pairs,), (pairs, width, width), (pairs, width))
    return AttentionSVM(*(scale * torch.randn(shape, dtype=torch.float64) for shape in shapes), temperature)


def attention_bound(d: int, temperature: float = 1.0) -> float:
    top = math.exp(1 / temperature)
    return math.exp(top / (top + (d - 1) / top))


def clusters(n=20, width=2, gap=3.0):
    """Features (1, 2n, width) of two classes that a line separates, and their sides."""
    torch.manual_seed(1)
    z = torch.randn(2 * n, width) * 0.3
    sides = torch.tensor([-1.0, 1.0]).repeat_interleave(n)
    z[:, 0] += gap / 2 * sides
    return z[None], sides


def objective(svm, z, sides, cost=0.01):
    return (cost * (1 - sides * svm.scores(z)).relu().mean() + svm.weight.square().mean()).item()


@given(st.floats(0.01, 100), st.sampled_from([0.1, 0.5, 1.0]))
@settings(max_examples=10, deadline=None)
def test_attention_lies_between_1_and_its_bound(scale, temperature):
    svm = random_svm(scale=scale, temperature=temperature)
    a = svm.attention(scale * torch.randn(2, 9, D, dtype=torch.float64))
    assert a.min() >= 1
    assert a.max() <= attention_bound(D, temperature) * (1 + 1e-12)


def test_the_bound_is_reached_and_is_small_for_many_features():
    assert attention_bound(500) == pytest.approx(1.0147, abs=1e-4)
    svm = random_svm(1)
    offset = torch.full((1, D), -100.0, dtype=torch.float64)
    offset[0, 2] = 100
    svm = AttentionSVM(svm.weight, svm.bias, torch.zeros_like(svm.matrix), offset)
    assert svm.attention(torch.ones(1, 1, D, dtype=torch.float64))[0, 0, 2].item() == pytest.approx(attention_bound(D))


def test_permuted_features_have_permuted_attention():
    svm, z, order = random_svm(1), torch.randn(1, 4, D, dtype=torch.float64), torch.randperm(D)
    other = AttentionSVM(svm.weight[:, order], svm.bias, svm.matrix[:, order][:, :, order], svm.offset[:, order])
    torch.testing.assert_close(other.attention(z[..., order]), svm.attention(z)[..., order])
    torch.testing.assert_close(other.scores(z[..., order]), svm.scores(z))


def test_a_move_increases_the_score_by_the_squared_direction():
    svm, z = random_svm(), torch.randn(2, 5, D, dtype=torch.float64)
    held = svm.attention(z)

    def score(z):
        return (svm.weight[:, None] * held * z).sum(2) + svm.bias[:, None]

    direction = svm.directions(z)
    gain = (held * svm.weight[:, None]).square().sum(2)
    torch.testing.assert_close(score(z), svm.scores(z))
    torch.testing.assert_close(score(z + 0.7 * direction), svm.scores(z) + 0.7 * gain)


@pytest.mark.parametrize("attention", [True, False])
def test_separable_classes_are_separated_and_exchanging_them_reverses_the_direction(attention):
    z, sides = clusters(width=4)
    losses = [0.01]  # that of weight 0
    for epochs in (1, 10):
        svm, other = (
            fit_attention_svm(z, s, attention=attention, epochs=epochs, generator=torch.Generator().manual_seed(0))
            for s in (sides, -sides)
        )
        torch.testing.assert_close(svm.directions(z), -other.directions(z))
        losses.append(objective(svm, z, sides))
        assert (svm.scores(z).sign() == sides).all()
    assert losses[0] > losses[1] > losses[2]
    assert abs(svm.weight[0, 0]) > 5 * abs(svm.weight[0, 1:]).max()  # the normal of the gap
    if not attention:
        torch.testing.assert_close(svm.scores(z), z @ svm.weight[0] + svm.bias)
        assert torch.equal(svm.directions(z), svm.weight.expand(1, *z.shape[1:]))


def test_a_step_follows_the_gradient():
    z, side = torch.randn(2, 1, D, dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)
    before, after = (  # one example: an epoch is a step
        fit_attention_svm(z, side, epochs=epochs, cost=1.0, lr=0.02, temperature=0.5) for epochs in (3, 4)
    )
    names = ("weight", "bias", "matrix", "offset")
    leaves = [getattr(before, name).clone().requires_grad_() for name in names]
    loss = (1 - AttentionSVM(*leaves, 0.5).scores(z)).relu().sum() + leaves[0].square().mean(1).sum()
    gradients = torch.autograd.grad(loss, leaves)
    assert gradients[2].abs().max() > 0
    for name, leaf, gradient in zip(names, leaves, gradients, strict=True):
        torch.testing.assert_close(getattr(after, name), leaf.detach() - 0.02 * gradient)


def test_pairs_are_fitted_independently():
    torch.manual_seed(2)
    z, sides = torch.randn(3, 8, D), torch.tensor([-1.0, 1.0]).repeat(4)
    together = fit_attention_svm(z, sides, generator=torch.Generator().manual_seed(0))
    for number in range(3):
        alone = fit_attention_svm(z[number : number + 1], sides, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(together.pair(number).matrix, alone.matrix)
        torch.testing.assert_close(together.pair(number).weight, alone.weight)


def test_a_temperature_of_0_is_refused():
    with pytest.raises(ValueError, match="temperature must be > 0, got 0"):
        fit_attention_svm(*clusters(), temperature=0)
