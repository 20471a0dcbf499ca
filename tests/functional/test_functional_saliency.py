"""Saliency maps of functions with known results."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_paf.functional.input_gradient import input_gradient
from lightning_paf.functional.saliency import gaussian_blur, gradient_saliency, most_salient, perturbation_saliency

X = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 0])


def pixel(row: int, column: int, gain: float = 20.0):
    """Two logits that depend on one pixel."""
    return lambda x: torch.stack([gain * x[:, 0, row, column], torch.zeros(len(x))], 1)


def test_a_constant_has_no_salient_pixels():
    constant = lambda x: torch.zeros(len(x), 2) + 0 * x.sum()  # noqa: E731
    assert not perturbation_saliency(constant, X).any()
    assert not gradient_saliency(constant, X, Y).any()


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 7), st.integers(0, 7), st.sampled_from([4, 8]))
def test_one_pixel_is_found_up_to_the_stride(row, column, grid):
    found = perturbation_saliency(pixel(row, column), X, grid)
    assert found.shape == (3, 8, 8)
    assert (found >= 0).all()
    best = found.flatten(1).argmax(1)
    stride = 8 // grid
    assert ((best // 8 - row).abs() <= stride).all()
    assert ((best % 8 - column).abs() <= stride).all()


def test_the_value_is_half_the_squared_change_of_the_probabilities():
    forward, changed = pixel(3, 4), X.clone()
    changed[:, 0, 3, 4] = gaussian_blur(X, 1.0)[:, 0, 3, 4]  # the window is 1 in its centre
    expected = (forward(changed).softmax(1) - forward(X).softmax(1)).square().sum(1) / 2
    torch.testing.assert_close(perturbation_saliency(forward, X)[:, 3, 4], expected)


def test_gradient_saliency_is_the_gradient_for_labels_and_distributions():
    forward = pixel(2, 5)
    found = gradient_saliency(forward, X, Y)
    p = forward(X).softmax(1)[torch.arange(3), Y]
    expected = torch.zeros(3, 8, 8)
    expected[:, 2, 5] = 20 * (1 - p)
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad
    one_hot = torch.nn.functional.one_hot(Y, 2).float()
    torch.testing.assert_close(input_gradient(forward, X, Y), input_gradient(forward, X, one_hot))


@pytest.mark.parametrize("sigma", [0.5, 4.0])
def test_blur_keeps_constants_and_reduces_variation(sigma):
    torch.testing.assert_close(gaussian_blur(torch.full((1, 3, 6, 9), 0.3), sigma), torch.full((1, 3, 6, 9), 0.3))
    assert gaussian_blur(X, sigma).std() < X.std()
    torch.testing.assert_close(gaussian_blur(X, sigma).mT, gaussian_blur(X.mT, sigma))


def test_the_most_salient_pixels_are_a_fraction_of_each_image():
    saliency = torch.arange(16.0).view(1, 4, 4)
    assert torch.equal(most_salient(saliency, 0.25), saliency >= 12)
    assert not most_salient(saliency, 0).any()
    assert most_salient(saliency, 1).all()
    assert most_salient(torch.zeros(2, 4, 4), 0.5).sum((1, 2)).tolist() == [8, 8]
