"""Directions and lengths of moves, with a network and a decoder of known output."""

import pytest
import torch
from torch import nn

from lightning_paf.synthesis.ladder.moves import (
    adaptive_eps,
    eps_for_fraction,
    flips_of,
    in_parts,
    latent_moves,
    random_directions,
)

K, PER_CLASS, D = 3, 12, 5


def features():
    """Three classes in random order, each with its own feature."""
    torch.manual_seed(0)
    labels = torch.randperm(K * PER_CLASS) % K
    return 0.2 * torch.randn(len(labels), D) + 2 * nn.functional.one_hot(labels, D), labels


class Largest(nn.Module):
    """Decoder: the features as an image. Classifier: the largest of the first three pixels."""

    def forward(self, z):
        return z[:, None, None, :] if z.dim() == 2 else z.flatten(1)[:, :K]


def threshold(values):
    """Flips of images that change their class from these eps on."""
    return lambda rows, eps: eps >= values[rows]


@pytest.fixture(scope="module", params=[True, False], ids=["attention", "plain"])
def moves(request):
    return latent_moves(*features(), K, attention=request.param, per_class=7)


def test_sources_are_the_first_images_of_each_class(moves):
    z, labels = features()
    assert len(moves.rows) == 7 * K
    for label in range(K):
        mine = moves.rows[moves.labels == label]
        assert set(mine.tolist()) == set(torch.nonzero(labels == label).flatten()[:7].tolist())
    assert torch.equal(labels[moves.rows], moves.labels)
    assert torch.equal(z[moves.rows], moves.z)
    assert (moves.targets != moves.labels).all()
    assert len(set(zip(moves.labels.tolist(), moves.targets.tolist(), strict=True))) > K


def test_moves_lead_from_the_own_class_towards_the_target(moves):
    assert moves.svm_accuracy == 1
    assert (moves.score < 0).all()
    assert (moves.gain > 0).all()
    torch.testing.assert_close(moves.gain, moves.direction.square().sum(1))
    rows = torch.arange(len(moves.rows))
    assert (moves.direction[rows, moves.targets] > 0).all()
    assert (moves.direction[rows, moves.labels] < 0).all()


def test_flips_compare_decoded_moves_with_decoded_features(moves):
    assert torch.equal(in_parts(Largest(), moves.moved(torch.zeros(len(moves.rows)))), Largest()(moves.z))
    flips, rows = flips_of(Largest(), Largest(), moves), torch.tensor([1, 4, 9])
    far = 10 * moves.z.abs().max() / moves.direction.abs().max()
    assert not flips(rows, torch.zeros(3)).any()
    assert flips(rows, far.expand(3)).all()


def test_random_directions_have_the_same_lengths(moves):
    control = random_directions(moves)
    torch.testing.assert_close(control.direction.norm(dim=1), moves.direction.norm(dim=1))
    assert torch.equal(control.z, moves.z)
    cosine = nn.functional.cosine_similarity(control.direction, moves.direction)
    assert cosine.mean().abs() < 0.4
    torch.testing.assert_close(control.gain, cosine * moves.gain)


def test_adaptive_eps_is_the_first_of_the_series_that_flips_or_the_last():
    values = torch.tensor([0.0, 0.25, 0.3, 1.0, 1.7, 50.0])
    eps = adaptive_eps(threshold(values), values, start=0.2, step=0.2, most=6)
    # 0.2, 0.4, 0.6, 0.8, 1.0, then by ten times the step: 3.0, 5.0
    torch.testing.assert_close(eps, torch.tensor([0.2, 0.4, 0.4, 1.0, 3.0, 5.0]), atol=1e-5, rtol=0)
    eps = adaptive_eps(threshold(values), values, start=0.1, step=0.1, most=20, tries=3)
    assert eps[-1].item() == pytest.approx(0.3)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_eps_for_a_fraction_is_the_smallest_that_flips_it(scale):
    values = scale * torch.linspace(0.1, 1, 10)
    eps = eps_for_fraction(threshold(values), values, 0.3)
    assert eps.shape == (10,)
    assert eps[0].item() == pytest.approx(0.3 * scale, rel=1e-2)
    assert (values <= eps).sum() == 3


@pytest.mark.parametrize(("start", "step", "most"), [(0.5, 0, 2), (2, 0.1, 1), (-1, 0.1, 1)])
def test_a_series_that_does_not_grow_is_refused(start, step, most):
    with pytest.raises(ValueError, match="must be E, STEP > 0"):
        adaptive_eps(threshold(torch.zeros(2)), torch.zeros(2), start, step, most)


def test_an_impossible_fraction_and_too_few_images_are_refused():
    with pytest.raises(ValueError, match=r"--flip must be attainable, got 0.3"):
        eps_for_fraction(threshold(torch.full((4,), torch.inf)), torch.zeros(4), 0.3)
    z, labels = features()
    one = torch.cat([torch.nonzero(labels == 0).flatten()[:1], torch.nonzero(labels > 0).flatten()])
    with pytest.raises(ValueError, match=r"Each class must have at least 2 images .* got 1\."):
        latent_moves(z[one], labels[one], K)
