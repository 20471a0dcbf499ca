import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lightning_paf.functional import cross_entropy, dlr, kl_divergence, margin

seeds = st.integers(0, 10_000)


def example(seed, n=6, classes=5):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=generator, dtype=torch.float64) * 3
    return logits, torch.randint(classes, (n,), generator=generator)


def test_cross_entropy_of_equal_logits_is_log_c():
    torch.testing.assert_close(cross_entropy(torch.zeros(3, 7), torch.arange(3)), torch.full((3,), math.log(7)))


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_soft_one_hot_equals_hard_labels(seed):
    logits, y = example(seed)
    one_hot = F.one_hot(y, 5).double()
    torch.testing.assert_close(cross_entropy(logits, one_hot), cross_entropy(logits, y))
    torch.testing.assert_close(kl_divergence(logits, one_hot), cross_entropy(logits, y))
    torch.testing.assert_close(kl_divergence(logits, y), cross_entropy(logits, y))


def test_label_smoothing_mixes_in_the_uniform_target():
    logits, y = example(0)
    expected = 0.9 * cross_entropy(logits, y) - 0.1 * logits.log_softmax(1).mean(1)
    torch.testing.assert_close(cross_entropy(logits, y, label_smoothing=0.1), expected)


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_kl_is_cross_entropy_less_entropy(seed):
    logits, _ = example(seed)
    p = example(seed + 1)[0].softmax(1)
    entropy = -(p * p.log()).sum(1)
    torch.testing.assert_close(kl_divergence(logits, p), cross_entropy(logits, p) - entropy)
    assert (kl_divergence(logits, p) >= 0).all()
    torch.testing.assert_close(kl_divergence(p.log(), p), torch.zeros(6, dtype=torch.float64))


def test_kl_has_finite_gradients_where_the_target_underflows():
    # Softmax gives exact zeros in single precision here; 0 log 0 would turn its gradient into NaN.
    source = torch.tensor([[0.0, 200.0, -200.0]], requires_grad=True)
    logits = torch.tensor([[1.0, 0.0, -1.0]], requires_grad=True)
    p = source.softmax(1)
    assert (p == 0).any()
    kl_divergence(logits, p).sum().backward()
    assert source.grad.isfinite().all()
    torch.testing.assert_close(logits.grad, (logits.softmax(1) - p).detach())


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_margin_is_positive_exactly_when_misclassified(seed):
    logits, y = example(seed)
    assert torch.equal(margin(logits, y) > 0, logits.argmax(1) != y)


def test_margin_by_hand():
    logits = torch.tensor([[3.0, 1.0, -2.0], [3.0, 1.0, -2.0]])
    assert margin(logits, torch.tensor([0, 2])).tolist() == [-2.0, 5.0]


def test_margin_does_not_modify_the_logits_and_has_a_gradient():
    logits = torch.tensor([[3.0, 1.0, -2.0]], requires_grad=True)
    margin(logits, torch.tensor([0])).sum().backward()
    assert logits.grad.tolist() == [[-1.0, 1.0, 0.0]]
    assert logits.tolist() == [[3.0, 1.0, -2.0]]


def test_dlr_by_hand():
    logits = torch.tensor([[3.0, 1.0, -2.0, -9.0], [3.0, 1.0, -2.0, -9.0]])
    torch.testing.assert_close(dlr(logits, torch.tensor([0, 1])), torch.tensor([-2 / 5, 2 / 5]))


@given(seeds, st.floats(0.01, 100), st.floats(-10, 10))
@settings(max_examples=20, deadline=None)
def test_dlr_is_invariant_to_scale_and_shift(seed, scale, shift):
    logits, y = example(seed)
    torch.testing.assert_close(dlr(scale * logits + shift, y), dlr(logits, y))


def test_dlr_refuses_two_classes():
    with pytest.raises(ValueError, match="must be at least 3 for the DLR loss, got 2"):
        dlr(torch.zeros(1, 2), torch.tensor([0]))


@pytest.mark.parametrize("loss", [margin, dlr])
def test_the_most_likely_class_of_a_distribution_is_the_label(loss):
    logits, y = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    mixed = 0.6 * torch.nn.functional.one_hot(y, 4) + 0.1
    assert loss(logits, y).shape == (6,)
    assert torch.equal(loss(logits, mixed), loss(logits, y))
