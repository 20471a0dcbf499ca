"""What every objective promises, over all subclasses."""

import copy

import pytest
import torch
from helpers.every_objective import OBJECTIVES, build
from helpers.fakes import images, tiny_classifier

from lightning_paf.attacks import PGD
from lightning_paf.objectives.base import StepResult

ATTACK = PGD(0.1, step_size=0.05, steps=2)


@pytest.fixture(params=OBJECTIVES, ids=lambda cls: cls.__name__)
def objective(request):
    return build(request.param)


def step(objective, model=None, seed=0) -> StepResult:
    model = model or tiny_classifier().train()
    objective.bind(model)
    torch.manual_seed(seed)
    return objective(model, *images(), ATTACK)


def test_there_are_objectives():
    assert {"Natural", "AdversarialCE", "TRADES"} <= {cls.__name__ for cls in OBJECTIVES}


def test_loss_is_a_finite_scalar_and_logits_fit(objective):
    result = step(objective)
    assert result.loss.shape == ()
    assert torch.isfinite(result.loss)
    assert result.logits.shape == (8, 10)
    assert all(value.shape == () and not value.requires_grad for value in result.logs.values())


def test_every_parameter_gets_a_gradient(objective):
    model = tiny_classifier().train()
    step(objective, model).loss.backward()
    for name, parameter in [*model.named_parameters(), *objective.named_parameters()]:
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_the_same_seed_gives_the_same_loss(objective):
    assert torch.equal(step(objective, seed=3).loss, step(objective, seed=3).loss)


def test_distributions_stand_for_labels(objective):
    """Where the data mix or smooth labels; one-hot rows are the labels themselves."""
    model, (x, y) = tiny_classifier().train(), images()
    objective.bind(model)
    losses = []
    for target in (y, torch.nn.functional.one_hot(y, 10).float()):
        torch.manual_seed(0)
        losses.append(objective(copy.deepcopy(model), x, target, ATTACK).loss)
    torch.testing.assert_close(*losses)


def test_nothing_with_a_graph_stays_behind(objective):
    model = tiny_classifier().train()
    step(objective, model)
    copy.deepcopy(objective)  # weight averaging does this
    copy.deepcopy(model)


def test_the_model_stays_in_training_mode(objective):
    model = tiny_classifier().train()
    step(objective, model)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
