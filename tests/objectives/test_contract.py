"""Properties of every objective, over all subclasses."""

import copy

import pytest
import torch
from helpers.every_objective import OBJECTIVES, build
from helpers.fakes import images, tiny_classifier
from helpers.training import ATTACK


@pytest.fixture(params=OBJECTIVES, ids=lambda cls: cls.__name__)
def objective(request):
    return build(request.param)


def step(objective, model, seed=0):
    objective.bind(model)
    torch.manual_seed(seed)
    return objective(model, *images(), ATTACK)


def test_there_are_objectives():
    assert {"Natural", "AdversarialCE", "TRADES"} <= {cls.__name__ for cls in OBJECTIVES}


def test_a_step_gives_a_loss_and_every_gradient_and_leaves_nothing_behind(objective):
    model = tiny_classifier().train()
    result = step(objective, model)
    assert result.loss.shape == ()
    assert torch.isfinite(result.loss)
    assert result.logits.shape == (8, 10)
    assert all(value.shape == () and not value.requires_grad for value in result.logs.values())
    result.loss.backward()
    for name, parameter in [*model.named_parameters(), *objective.named_parameters()]:
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.requires_grad, name
    assert all(module.training for module in model.modules())
    copy.deepcopy((objective, model))  # weight averaging does this; tensors with a graph cannot be copied


def test_the_same_seed_gives_the_same_loss(objective):
    losses = [step(objective, tiny_classifier().train(), seed=3).loss for _ in range(2)]
    assert torch.equal(*losses)


def test_one_hot_distributions_are_labels(objective):
    model, (x, y) = tiny_classifier().train(), images()
    objective.bind(model)
    losses = []
    for target in (y, torch.nn.functional.one_hot(y, 10).float()):
        torch.manual_seed(0)
        losses.append(objective(copy.deepcopy(model), x, target, ATTACK).loss)
    torch.testing.assert_close(*losses)
