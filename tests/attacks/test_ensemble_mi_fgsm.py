"""The momentum attack on an ensemble: what it reduces to, and what it refuses."""

import pytest
import torch
from helpers.digits_net import Recorder, digits, lambda_module
from helpers.fakes import images
from torch import nn

from lightning_paf.attacks import MIFGSM, EnsembleMIFGSM


def test_an_ensemble_of_the_model_itself_is_mi_fgsm_and_weights_choose():
    net, x, y = digits(8)
    other = lambda_module(lambda z: -net(z))
    expected = MIFGSM(0.1)(net, x, y)
    torch.testing.assert_close(EnsembleMIFGSM([net, net], [1, 3], 0.1)(net, x, y), expected)
    assert torch.equal(EnsembleMIFGSM([other, net], [0, 2], 0.1)(net, x, y), expected)
    assert not torch.equal(EnsembleMIFGSM([other, net], [2, 1], 0.1)(net, x, y), expected)


def test_an_ensemble_asks_the_attacked_model_once():
    net, x, y = digits(8)
    asked = Recorder(net)
    EnsembleMIFGSM([net], eps=0.1)(asked, x, y)
    assert asked.seen == 1


def test_ensembles_refuse_what_does_not_fit():
    net, x, y = digits(2)
    narrow = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    with pytest.raises(ValueError, match=r"attacked model has 10 classes, its surrogates have \[5\]"):
        EnsembleMIFGSM([narrow])(net, x, y)
    with pytest.raises(ValueError, match="no surrogate"):
        EnsembleMIFGSM([])
    for weights in ([1.0], [1.0, -1.0], [0.0, 0.0]):
        with pytest.raises(ValueError, match="2 surrogates need as many weights"):
            EnsembleMIFGSM([net, net], weights)
    narrow.num_classes, wide = 5, nn.Flatten()
    wide.num_classes = 10
    with pytest.raises(ValueError, match=r"surrogates have 10 and 5 classes"):
        EnsembleMIFGSM([narrow, wide])


class Plain(nn.Module):
    """Says nothing of its classes but by its last layer; its BatchNorm refuses single images in train mode."""

    def __init__(self, classes):
        super().__init__()
        self.norm, self.fc = nn.BatchNorm1d(3 * 8 * 8), nn.Linear(3 * 8 * 8, classes)

    def forward(self, x):
        return self.fc(self.norm(x.flatten(1)))


def test_plain_surrogates_of_different_classes_are_refused_at_once():
    with pytest.raises(ValueError, match="The surrogates have 3 and 4 classes"):
        EnsembleMIFGSM([Plain(3), Plain(4)])


def test_in_train_mode_the_number_of_classes_is_asked_with_two_images():
    x, y = images(4, size=8, num_classes=3)
    before = (net := Plain(3)).norm.running_mean.clone()
    assert EnsembleMIFGSM([net], mode="train")(Plain(3), x, y).shape == x.shape
    assert torch.equal(net.norm.running_mean, before)
