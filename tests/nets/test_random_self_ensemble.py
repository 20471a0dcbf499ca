"""Random self-ensemble: noise, averages, and features."""

import copy
import math
import pickle
from collections import Counter

import pytest
import torch
from helpers.cli_runs import built, write_experiment
from helpers.every_net import SMALL, build
from helpers.fakes import TinyNet, images, spec
from torch import nn

from lightning_paf.attacks import PGD
from lightning_paf.evaluation.identity import network_fingerprint
from lightning_paf.nets import RandomSelfEnsemble, SmallConvNet, TimmNet
from lightning_paf.nn.activations import PSSiLU
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.modes import frozen
from lightning_paf.nn.swap import swap_activations
from lightning_paf.speed.folded_model import FoldedModel

X, Y = images()


def ensemble(first=0.2, inner=0.1, passes=10, net=None):
    torch.manual_seed(0)
    return RandomSelfEnsemble(net or SmallConvNet(3, width=4), first, inner, passes).eval()


def base():
    torch.manual_seed(0)
    return SmallConvNet(3, width=4).eval()


def seen_by_convolutions(net, x):
    """Input of each convolution in a forward pass, in the order of the calls, with the convolution."""
    seen = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, _: seen.append((module, inputs[0])))
    with torch.no_grad():
        net(x)
    return seen


def test_without_noise_one_pass_is_the_network():
    assert torch.equal(ensemble(0, 0, passes=1)(X), base()(X))
    net, state = ensemble(0, 0), torch.get_rng_state()
    net(X)
    assert torch.equal(state, torch.get_rng_state())


def test_without_noise_the_average_has_the_probabilities_of_the_network():
    net = ensemble(0, 0, passes=4)
    torch.testing.assert_close(net(X).exp(), base()(X).softmax(1))
    assert torch.equal(net.train()(X), base().train()(X)), "one pass in training"


def test_probabilities_are_averaged_over_passes():
    net = ensemble(passes=5)
    torch.manual_seed(1)
    found = net(X)
    torch.manual_seed(1)
    expected = torch.stack([net.net(X).softmax(1) for _ in range(5)]).mean(0)
    torch.testing.assert_close(found.exp(), expected)
    assert not torch.equal(found, net(X))


def test_the_first_convolution_has_different_noise():
    net = ensemble(0.3, 0.05, passes=1)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)  # its output is 0, so the input of the next one is noise
            nn.init.zeros_(module.bias)
    seen = seen_by_convolutions(net, torch.zeros(64, 3, 8, 8))
    assert len(seen) == 4
    assert [float(x.std()) for _, x in seen] == pytest.approx([0.3, 0.05, 0.05, 0.05], rel=0.05)


@pytest.mark.parametrize("cls", SMALL, ids=lambda cls: cls.__name__)
def test_in_every_network_the_convolution_defined_first_sees_the_image(cls):
    net = build(cls, in_channels=3).eval()
    first = next((module for module in net.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None:
        pytest.skip("has no convolution")
    seen = seen_by_convolutions(net, torch.rand(2, 3, 32, 32))
    assert seen[0][0] is first
    assert Counter(module for module, _ in seen)[first] == 1


def test_the_gradient_flows_through_all_passes():
    net, x = ensemble(passes=3), X.clone().requires_grad_()
    torch.manual_seed(1)
    (found,) = torch.autograd.grad(net(x).gather(1, Y[:, None]).sum(), x)
    torch.manual_seed(1)
    mean = torch.stack([net.net(x).softmax(1) for _ in range(3)]).mean(0)
    (expected,) = torch.autograd.grad(mean.log().gather(1, Y[:, None]).sum(), x)
    torch.testing.assert_close(found, expected)


def test_an_attack_raises_the_expected_loss():
    model = Classifier(ensemble(passes=4), spec()).eval()
    x_adv = PGD(0.1, step_size=0.04, steps=5)(model, X, Y)

    def expected_loss(x):
        with torch.no_grad():
            return -torch.stack([model(x).softmax(1) for _ in range(20)]).mean(0).log().gather(1, Y[:, None]).mean()

    assert expected_loss(x_adv) > expected_loss(X) + 0.05


@pytest.mark.parametrize(
    "make", [lambda: SmallConvNet(3, width=4), TinyNet, lambda: TimmNet("test_resnet"), lambda: TimmNet("test_vit")]
)
def test_features_are_those_of_the_last_pass(make):
    model = Classifier(ensemble(net=make()), spec()).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    x = torch.rand(2, 3, 160, 160) if isinstance(model.net.net, TimmNet) else X
    out = model.outputs(x)
    torch.testing.assert_close(model.head(out.features), out.logits)
    assert model.eval().outputs(x).features.shape == (len(x), model.num_features)


def test_activations_are_swapped_and_trained():
    net = ensemble()
    assert swap_activations(net, PSSiLU) == 4
    model = Classifier(net, spec()).train()
    (model(X).square().mean() + model.penalty()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_copies_keep_their_noise_and_checkpoints_the_keys_of_the_network():
    net = ensemble()
    assert {key.removeprefix("net.") for key in net.state_dict()} == base().state_dict().keys()
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        torch.manual_seed(1)
        expected = net(X)
        torch.manual_seed(1)
        assert torch.equal(copied(X), expected)


def test_identities_separate_ensembles():
    settings = [(0.2, 0.1, 10), (0.3, 0.1, 10), (0.2, 0.2, 10), (0.2, 0.1, 5)]
    assert len({network_fingerprint(ensemble(*values)) for values in settings}) == 4


def test_attacks_in_training_use_the_network_itself():
    """A folded copy must not replace a random network."""
    model = Classifier(ensemble(net=TinyNet()), spec())
    copied = FoldedModel(model)
    with frozen(model):
        copied.refresh()(X)
    assert not copied.folded


def test_it_takes_the_number_of_classes_from_the_data(tmp_path):
    net = ("--model.net", "RandomSelfEnsemble", "--model.net.net", "SmallConvNet", "--model.net.net.in_channels", "3")
    model = built("-c", write_experiment(tmp_path), *net, "--model.net.passes", "2").model.model
    assert model.head.out_features == 3
    assert model.net.passes == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ensemble(-1), r"first_std must be .*got -1.*--model.net.first_std"),
        (lambda: ensemble(inner=math.nan), r"inner_std must be .*got nan"),
        (lambda: ensemble(passes=0), r"passes must be .*got 0.*--model.net.passes 10"),
        (lambda: ensemble(net=nn.Linear(3, 3)), "net must have convolutions, got Linear"),
    ],
)
def test_invalid_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
