"""Joint training of a network and its probes."""

import pytest
import torch
import torch.nn.functional as F
from helpers.cli_runs import built
from helpers.fakes import images, spec, tiny_classifier
from helpers.training import ATTACK

from lightning_paf.attacks import PGD
from lightning_paf.attacks.joint import joint_loss
from lightning_paf.nets import GatedResNet, SmallConvNet
from lightning_paf.nn.classifier import Classifier
from lightning_paf.objectives import JointCE

LAYERS = ["features.5", "features.7"]


def model(**options):
    torch.manual_seed(0)
    return Classifier(GatedResNet(SmallConvNet(3, width=4), layers=LAYERS, **options), spec()).train()


@pytest.mark.parametrize("beta", [0.0, 2.0, 5.0])
def test_the_loss_is_that_of_the_equation(beta):
    found, (x, y) = model(), images()
    objective = JointCE(beta, adversarial=False)
    objective.bind(found)
    result = objective(found, x, y, ATTACK)
    outputs = found.outputs(x, y)
    final, *probes = (F.cross_entropy(logits, y) for logits in (outputs.logits, *outputs.aux))
    wanted = {0.0: 3 * final, 2.0: final + probes[0] + probes[1], 5.0: (final + 2.5 * (probes[0] + probes[1])) / 2}
    torch.testing.assert_close(result.loss, wanted[beta])
    assert torch.equal(result.logits, outputs.logits)


def test_the_attack_increases_the_joint_loss_without_labels_in_the_gates():
    found, (x, y) = model(), images()
    attack = PGD(0.1, step_size=0.05, steps=2, start="none")
    x_adv = attack(found, x, y, loss=joint_loss(2.0), forward=lambda images: found.outputs(images))
    wanted = JointCE(adversarial=False)(found, x_adv, y, attack).loss
    torch.testing.assert_close(JointCE()(found, x, y, attack).loss, wanted)


def test_every_parameter_gets_a_gradient_also_that_of_the_bias_of_probes():
    found, (x, y) = model(), images()
    JointCE()(found, x, y, ATTACK).loss.backward()
    for name, parameter in found.named_parameters():
        assert (parameter.grad != 0).any(), name


@pytest.mark.parametrize("make", [tiny_classifier, lambda: model(probes=["random", "random"])])
def test_a_network_without_probes_is_refused(make):
    with pytest.raises(ValueError, match=r"must have probes for JointCE, got .*Pass --model\.net GatedResNet"):
        JointCE().bind(make())


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match="beta must be finite and >= 0, got -1"):
        JointCE(-1.0)


def test_it_is_built_from_the_command_line():
    net = ("--model.net", "GatedResNet", "--model.net.net", "SmallConvNet", "--model.net.layers", str(LAYERS))
    cli = built("-c", "configs/experiments/digits.yaml", *net, "--model.objective", "JointCE")
    assert cli.model.objective.beta == 2
    assert len(cli.model.model.eval().outputs(torch.rand(2, 1, 8, 8)).aux) == 2
