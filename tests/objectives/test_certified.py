"""Certified training: closed forms on linear networks, limits, schedules, and recomputed activations."""

import pytest
import torch
from helpers.cli_runs import status, write_experiment
from helpers.fakes import images
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_paf.attacks import PGD
from lightning_paf.nn.classifier import Classifier
from lightning_paf.objectives import CROWNIBP, IBP, SABR
from lightning_paf.specs import DatasetSpec

EPS = 0.05
SPEC = DatasetSpec("three", 3, 8, (0.0,) * 3, (1.0,) * 3)
X, Y = images(num_classes=3)
X = 0.2 + 0.6 * X  # the ball stays within [0, 1]


def classifier(*hidden):
    torch.manual_seed(0)
    widths = [3 * 64, *hidden]
    layers = [nn.Flatten()]
    for inner, outer in zip(widths, hidden, strict=False):
        layers += [nn.Linear(inner, outer), nn.ReLU()]
    return Classifier(nn.Sequential(*layers, nn.Linear(widths[-1], 3)), SPEC)


def certified_loss(objective, model, eps=EPS):
    objective.on_epoch_start(0, 1.0)
    return objective(model, X, Y, PGD(eps, step_size=eps / 2, steps=4)).logs["certified_loss"]


@pytest.mark.parametrize("cls", [IBP, CROWNIBP])
def test_the_loss_of_a_linear_network_is_that_of_its_worst_logits(cls):
    # The margin of class y over j falls by eps |w_y - w_j|_1 in the linf ball.
    model = classifier()
    weight, logits = model.net[1].weight, model(X)
    fall = EPS * (weight[Y][:, None] - weight[None]).abs().sum(2)
    expected = cross_entropy(logits + fall, Y)
    torch.testing.assert_close(certified_loss(cls(), model), expected, rtol=1e-4, atol=1e-5)


def test_bounds_shrink_to_the_clean_loss_with_the_radius():
    model = classifier(16)
    clean = cross_entropy(model(X), Y)
    losses = [certified_loss(IBP(), model, eps) - clean for eps in (0.1, 0.01, 1e-5)]
    assert losses[0] > losses[1] > losses[2] > -1e-5
    assert losses[2] < 1e-2


def test_a_certified_loss_is_at_least_that_of_every_attack_and_linear_bounds_are_tighter():
    model = classifier(16, 16).eval()
    attacked = PGD(EPS, step_size=EPS / 4, steps=20)(model, X, Y)
    interval = certified_loss(IBP(), model)
    early = CROWNIBP()
    early.on_epoch_start(0, 0.0)
    linear = early(model, X, Y, PGD(EPS, step_size=EPS / 2, steps=1)).logs["certified_loss"]
    assert cross_entropy(model(attacked), Y) <= linear < interval
    torch.testing.assert_close(certified_loss(CROWNIBP(), model), interval)  # interval bounds are left at the end


def test_sabr_trains_on_a_part_of_the_ball():
    model = classifier(16)
    interval = certified_loss(IBP(), model)
    torch.testing.assert_close(certified_loss(SABR(fraction=1.0), model), interval)
    assert certified_loss(SABR(fraction=0.1), model) < interval


def test_the_clean_loss_has_all_weight_first():
    objective = IBP(clean_weight=0.25)
    weights = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        objective.on_epoch_start(0, progress)
        weights.append(objective.weight)
    assert weights == [1.0, 0.625, 0.25, 0.25]


def test_gradients_reach_all_parameters():
    model, objective = classifier(8), IBP(clean_weight=0.0)
    objective.on_epoch_start(0, 1.0)
    objective(model, X, Y, PGD(EPS, step_size=EPS, steps=1)).loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.net.parameters())


def test_a_network_with_recomputed_activations_is_trained(tmp_path):
    config = write_experiment(tmp_path)
    options = ["--model.objective", "IBP", "--model.activation", "PSSiLU", "--model.speed.recompute", "true"]
    assert status("fit", "-c", config, *options, "--trainer.max_epochs", "1", "--run", tmp_path / "run") == 0
