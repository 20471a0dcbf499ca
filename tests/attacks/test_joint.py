"""Attacks on the joint loss of a network and its probes."""

import math

import pytest
import torch
from helpers.fakes import images, spec, tiny_classifier

from lightning_paf.attacks import FGSM, PGD, AutoAttack, JointAttack, JointGrid, run_sub_attack
from lightning_paf.attacks.joint import joint_loss
from lightning_paf.functional.losses import cross_entropy, margin
from lightning_paf.nets import GatedResNet, SmallConvNet
from lightning_paf.nn.channel_gate import gates
from lightning_paf.nn.classifier import Classifier, Outputs

ATTACK = PGD(0.1, step_size=0.05, steps=3, start="none")


def model(**options):
    torch.manual_seed(0)
    options = {"probes": ["mlp", "mlp"], "importance": "softplus", **options}
    net = GatedResNet(SmallConvNet(3, width=4), layers=["features.5", "features.7"], **options)
    for gate in gates(net):
        for parameter in gate.parameters():
            torch.nn.init.normal_(parameter)
    return Classifier(net, spec()).eval()


def joint(found, x, y, weight):
    return joint_loss(weight)(found.outputs(x), y)


def test_the_joint_loss_weights_the_mean_over_the_probes():
    torch.manual_seed(0)
    final, *probes = torch.randn(3, 8, 10)
    y = torch.arange(8)
    for loss in (cross_entropy, margin):
        mean = (loss(probes[0], y) + loss(probes[1], y)) / 2
        outputs = Outputs(final, final, tuple(probes))
        torch.testing.assert_close(joint_loss(0, loss)(outputs, y), loss(final, y))
        torch.testing.assert_close(joint_loss(2, loss)(outputs, y), loss(final, y) + 2 * mean)
        torch.testing.assert_close(joint_loss(math.inf, loss)(outputs, y), mean)
        torch.testing.assert_close(joint_loss(math.inf, loss)(Outputs(final, final), y), loss(final, y))


@pytest.mark.parametrize("weight", [0.0, 2.0, math.inf])
def test_a_step_follows_the_gradient_of_the_joint_loss(weight):
    found, (x, y) = model(), images()
    x_adv = JointAttack(FGSM(0.01), weight)(found, x, y)
    point = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(joint(found, point, y, weight).sum(), point)
    torch.testing.assert_close(x_adv, (x + 0.01 * gradient.sign()).clamp(0, 1))


def test_weight_zero_and_networks_without_probes_are_the_attack_itself():
    found, (x, y) = model(), images()
    torch.testing.assert_close(JointAttack(ATTACK, 0)(found, x, y), ATTACK(found, x, y))
    plain = tiny_classifier().eval()
    torch.testing.assert_close(JointAttack(ATTACK, math.inf, mask_grad=True)(plain, x, y), ATTACK(plain, x, y))


def test_the_adaptive_attack_follows_the_exact_gradient():
    """The slope along its sign is that of differences, and larger than along the sign of the usual gradient."""
    found, (x, y) = model(), images()
    x = 0.25 + x / 2
    rises = []
    for mask_grad in (False, True):
        x_adv = JointAttack(FGSM(1e-4), 0, mask_grad)(found, x, y)
        rises.append(float((joint(found, x_adv, y, 0) - joint(found, x, y, 0)).detach().sum()))
    assert rises[1] > 1.01 * rises[0]
    assert not any(gate.mask_grad for gate in gates(found))


def test_the_grid_returns_the_worst_image_of_all_weights():
    found, (x, y) = model(), images()
    grid = JointGrid(ATTACK, [0, 2, math.inf])
    margins = [margin(found(JointAttack(ATTACK, weight)(found, x, y)), y) for weight in (0, 2, math.inf)]
    torch.testing.assert_close(margin(found(grid(found, x, y)), y), torch.stack(margins).amax(0))
    assert [one.label for one in grid.sub_attacks()] == ["pgd-joint0", "pgd-joint2", "pgd-jointinf"]
    assert len(JointGrid(ATTACK, mask_grad=True).sub_attacks()) == 7


@pytest.mark.parametrize("mask_grad", [False, True])
def test_in_an_evaluation_it_uses_the_folded_copy_with_equal_results(mask_grad):
    found, (x, y) = model(), images()
    with torch.no_grad():
        y = found(x).argmax(1)
    attack = JointAttack(ATTACK, 2, mask_grad)
    search = attack.search_model(found)
    x_adv, fooled = run_sub_attack(attack, search, x, y, 0)
    assert search.folded
    assert fooled.any()
    direct = attack(found, x, y)
    torch.testing.assert_close(x_adv[fooled], direct[fooled], atol=1e-5, rtol=0)
    assert not any(gate.mask_grad for gate in gates(search))


def test_settings_that_change_the_result_are_described():
    texts = {str(JointAttack(ATTACK, weight, mask).describe()) for weight in (0, math.inf) for mask in (False, True)}
    assert len(texts) == 4


@pytest.mark.parametrize("weight", [-1.0, math.nan])
def test_invalid_weights_are_refused(weight):
    with pytest.raises(ValueError, match="weight must be at least 0, got"):
        JointAttack(ATTACK, weight)


def test_attacks_with_their_own_losses_are_refused():
    with pytest.raises(ValueError, match="must have a loss that can be replaced, got AutoAttack"):
        JointAttack(AutoAttack(0.1))
    with pytest.raises(ValueError, match="attacks must hold at least one attack"):
        JointGrid(ATTACK, [])
