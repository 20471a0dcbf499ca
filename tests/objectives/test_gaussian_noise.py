"""Training with Gaussian noise."""

import torch
from helpers.fakes import images, steady_classifier
from torch.nn import functional as F

from lightning_paf.attacks import PGD
from lightning_paf.objectives import AWP, Natural, NoisyCE
from lightning_paf.objectives.gaussian_noise import training_noise

ATTACK = PGD(0.1, step_size=0.05, steps=3)
X, Y = images()


def loss_of(objective) -> torch.Tensor:
    model = steady_classifier()
    torch.manual_seed(0)
    return objective(model, X, Y, ATTACK).loss.detach()


def test_without_noise_it_is_natural_training_and_draws_no_random_numbers():
    model, state = steady_classifier(), torch.get_rng_state()
    found = NoisyCE(0)(model, X, Y, ATTACK).loss.detach()
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(found, loss_of(Natural()))


def test_it_is_cross_entropy_on_noise_that_is_not_clipped():
    torch.manual_seed(0)
    noisy = X + 0.25 * torch.randn_like(X)
    assert noisy.min() < 0
    torch.testing.assert_close(loss_of(NoisyCE(0.25)), F.cross_entropy(steady_classifier()(noisy), Y).detach())


def test_the_noise_of_inner_objectives_is_found():
    assert training_noise(AWP(NoisyCE(0.5))) == 0.5
    assert training_noise(Natural()) == 0
