"""HAT: reduction to TRADES, and the labels of its helper samples."""

import copy

import pytest
import torch
from helpers.fakes import images, steady_classifier, tiny_classifier
from torch.nn import functional as F

from lightning_paf.attacks import PGD
from lightning_paf.objectives import HAT, TRADES
from lightning_paf.objectives.trades import attack_prediction

ATTACK = PGD(0.1, step_size=0.05, steps=3, start="gaussian")
X, Y = images()


@pytest.fixture
def standard(tmp_path):
    """A checkpoint of a network that always predicts class 7."""
    model = tiny_classifier()
    with torch.no_grad():
        model.net.fc.bias[7] = 100
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {f"model.{name}": value for name, value in model.state_dict().items()}}, path)
    return path


def loss_of(objective, model=None):
    model = model or steady_classifier()
    objective.bind(model)
    torch.manual_seed(0)
    return objective(model, X, Y, ATTACK).loss


def test_without_helpers_it_is_trades(standard):
    torch.testing.assert_close(loss_of(HAT(standard, beta=3, gamma=0)), loss_of(TRADES(3)))


def test_helpers_lie_beyond_adversarial_images_and_have_the_labels_of_standard_training(standard):
    model = steady_classifier()
    added = loss_of(HAT(standard, gamma=0.5), model) - loss_of(HAT(standard, gamma=0), model)
    torch.manual_seed(0)
    helpers = X + 2 * (attack_prediction(model, X, ATTACK) - X)
    assert helpers.min() < 0
    expected = 0.5 * F.cross_entropy(model(helpers), torch.full((8,), 7))
    torch.testing.assert_close(added, expected)


def test_the_network_with_standard_training_is_neither_trained_nor_saved(standard):
    model, objective = steady_classifier(), HAT(standard)
    loss_of(objective, model).backward()
    assert not list(objective.parameters())
    assert not objective.state_dict()
    helper = objective._helper[0]
    assert not any(module.training for module in helper.modules())
    assert all(p.grad is None and not p.requires_grad for p in helper.parameters())
    assert helper.net.bn.num_batches_tracked == 0
    assert torch.equal(model.net.fc.bias, steady_classifier().net.fc.bias)


def test_without_the_file_a_run_can_be_evaluated_but_not_trained(tmp_path):
    objective, model = HAT(tmp_path / "gone.ckpt"), steady_classifier()
    objective.bind(model)
    copy.deepcopy(objective)
    for train in (lambda: objective.on_epoch_start(0, 0.0), lambda: objective(model, X, Y, ATTACK)):
        with pytest.raises(ValueError, match=r"standard must be .* got .*gone.ckpt.* --model.objective Natural\. Pass"):
            train()


def test_other_files_are_refused(tmp_path, standard):
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    with pytest.raises(ValueError, match="must be a checkpoint of `fit`"):
        HAT(tmp_path / "text.ckpt").bind(tiny_classifier())
    with pytest.raises(ValueError, match=r"holds another network:\n.*fc.weight"):
        HAT(standard).bind(tiny_classifier(num_classes=3))
