import copy

import pytest
import torch
from helpers.fakes import images, tiny_classifier
from torch.nn import functional as F

from lightning_paf.attacks import PGD
from lightning_paf.objectives import HAT, TRADES
from lightning_paf.objectives.trades import attack_prediction

ATTACK = PGD(0.1, step_size=0.05, steps=3, start="gaussian")


@pytest.fixture
def standard(tmp_path):
    """A checkpoint of a network that calls everything class 7."""
    model = tiny_classifier()
    with torch.no_grad():
        model.net.fc.bias[7] = 100
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {f"model.{name}": value for name, value in model.state_dict().items()}}, path)
    return path


def still():
    model = tiny_classifier().train()
    model.net.bn.momentum = 0.0
    return model


def loss_of(objective, model=None):
    model = model or still()
    objective.bind(model)
    torch.manual_seed(0)
    return objective(model, *images(), ATTACK).loss


def test_without_helpers_it_is_trades(standard):
    torch.testing.assert_close(loss_of(HAT(standard, beta=3, gamma=0)), loss_of(TRADES(3)))


def test_helpers_lie_beyond_and_have_the_labels_of_standard_training(standard):
    model, (x, _) = still(), images()
    added = loss_of(HAT(standard, gamma=0.5, scale=3.5), model) - loss_of(HAT(standard, gamma=0), model)
    torch.manual_seed(0)
    helpers = x + 3.5 * (attack_prediction(model, x, ATTACK) - x)
    assert helpers.min() < 0
    expected = 0.5 * F.cross_entropy(model(helpers), torch.full((8,), 7))
    torch.testing.assert_close(added, expected)


def test_the_helping_network_is_neither_trained_nor_saved_nor_changed(standard):
    model, objective = still(), HAT(standard)
    loss_of(objective, model).backward()
    assert not list(objective.parameters())
    assert not objective.state_dict()
    helper = objective._helper[0]
    assert not any(module.training for module in helper.modules())
    assert all(p.grad is None and not p.requires_grad for p in helper.parameters())
    assert helper.net.bn.num_batches_tracked == 0
    assert torch.equal(model.net.fc.bias, still().net.fc.bias)


def test_a_run_can_be_judged_without_the_file_but_not_trained(tmp_path):
    objective, model = HAT(tmp_path / "gone.ckpt"), still()
    objective.bind(model)
    copy.deepcopy(objective)
    for train in (lambda: objective.on_epoch_start(0, 0.0), lambda: objective(model, *images(), ATTACK)):
        with pytest.raises(ValueError, match=r"no checkpoint .*gone.ckpt. Train one with --model.objective Natural"):
            train()


def test_files_of_another_kind_are_refused(tmp_path, standard):
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    with pytest.raises(ValueError, match="must be a checkpoint of `fit`"):
        HAT(tmp_path / "text.ckpt").bind(still())
    with pytest.raises(ValueError, match=r"holds another network:\n.*fc.weight"):
        HAT(standard).bind(tiny_classifier(num_classes=3))


@pytest.mark.parametrize("options", [{"beta": -1}, {"gamma": -1}, {"scale": 0.5}, {"label_smoothing": 1}])
def test_nonsense_is_refused(tmp_path, options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name}.*[= ]{value}"):
        HAT(tmp_path, **options)
