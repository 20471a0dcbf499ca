import math

import pytest
import torch
from helpers.fakes import images, tiny_classifier
from torch.nn import functional as F

from lightning_paf.attacks import PGD
from lightning_paf.objectives import AWP, Natural, NoisyCE
from lightning_paf.objectives.gaussian_noise import training_noise

ATTACK = PGD(0.1, step_size=0.05, steps=3)


def still():
    model = tiny_classifier().train()
    model.net.bn.momentum = 0.0
    return model


def loss_of(objective) -> torch.Tensor:
    model = still()
    torch.manual_seed(0)
    return objective(model, *images(), ATTACK).loss.detach()


def test_without_noise_it_is_natural_training_and_draws_nothing():
    assert torch.equal(loss_of(NoisyCE(0)), loss_of(Natural()))
    model, state = still(), torch.get_rng_state()
    NoisyCE(0)(model, *images(), ATTACK)
    assert torch.equal(state, torch.get_rng_state())


def test_less_and_less_noise_approaches_natural_training():
    distances = [abs(float(loss_of(NoisyCE(std)) - loss_of(Natural()))) for std in (0.3, 0.03, 0.003)]
    assert distances == sorted(distances, reverse=True)
    assert 0 < distances[-1] < 1e-2


def test_it_is_cross_entropy_on_noise_that_is_not_clipped():
    x, y = images()
    torch.manual_seed(0)
    noisy = x + 0.25 * torch.randn_like(x)
    assert noisy.min() < 0
    torch.testing.assert_close(loss_of(NoisyCE(0.25)), F.cross_entropy(still()(noisy), y))


def test_the_noise_of_the_training_is_found_also_inside_other_objectives():
    assert training_noise(AWP(NoisyCE(0.5))) == 0.5
    assert training_noise(Natural()) == 0


@pytest.mark.parametrize("std", [-0.1, math.inf, math.nan])
def test_nonsense_is_refused(std):
    with pytest.raises(ValueError, match=rf"std must be .*got {std}"):
        NoisyCE(std)
