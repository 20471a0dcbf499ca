import pytest
import torch
from helpers.fakes import images, tiny_classifier
from torch.nn import functional as F

from lightning_paf.attacks import PGD
from lightning_paf.objectives import TRADES, AdversarialCE, Natural

ATTACK = PGD(0.1, step_size=0.05, steps=3, start="none")


def bn_mean(model):
    return model.net.bn.running_mean.clone()


def test_natural_is_cross_entropy_and_ignores_the_attack():
    model, (x, y) = tiny_classifier().train(), images()
    torch.testing.assert_close(Natural()(model, x, y, ATTACK).loss, F.cross_entropy(model(x), y))


def test_label_smoothing_is_torchs():
    model, (x, y) = tiny_classifier().train(), images()
    expected = F.cross_entropy(model(x), y, label_smoothing=0.1)
    torch.testing.assert_close(Natural(label_smoothing=0.1)(model, x, y, ATTACK).loss, expected)


def test_adversarial_loss_is_cross_entropy_where_the_attack_went():
    model, (x, y) = tiny_classifier().train(), images()
    x_adv = ATTACK(model, x, y)
    expected = F.cross_entropy(model(x_adv), y)
    result = AdversarialCE("adversarial")(model, x, y, ATTACK)
    # The attack runs in eval mode and the forward passes above moved the running statistics: hence the tolerance.
    torch.testing.assert_close(result.loss, expected, atol=2e-2, rtol=0)
    assert result.loss > F.cross_entropy(model(x), y)


def test_tiny_eps_makes_adversarial_training_natural():
    model, (x, y) = tiny_classifier().train(), images()
    nothing = PGD(1e-7, step_size=1e-7, steps=1)
    torch.testing.assert_close(AdversarialCE()(model, x, y, nothing).loss, Natural()(model, x, y, nothing).loss)


def test_mixed_statistics_see_the_clean_batch_once_more():
    x, y = images()
    mixed, adversarial = tiny_classifier().train(), tiny_classifier().train()
    AdversarialCE("mixed")(mixed, x, y, ATTACK)
    AdversarialCE("adversarial")(adversarial, x, y, ATTACK)
    assert mixed.net.bn.num_batches_tracked == 2
    assert adversarial.net.bn.num_batches_tracked == 1
    assert not torch.allclose(bn_mean(mixed), bn_mean(adversarial), atol=0, rtol=0)


def test_mixed_statistics_do_not_change_the_gradient():
    x, y = images()
    losses = []
    for rule in ("mixed", "adversarial"):
        model = tiny_classifier().train()
        model.net.bn.momentum = 0.0  # the attack, in eval mode, would see other statistics otherwise
        losses.append(AdversarialCE(rule)(model, x, y, ATTACK).loss)
    assert torch.equal(*losses)


def test_trades_without_weight_is_natural():
    model, (x, y) = tiny_classifier().train(), images()
    torch.testing.assert_close(TRADES(beta=0)(model, x, y, ATTACK).loss, F.cross_entropy(model(x), y))


def test_trades_is_linear_in_beta():
    model, (x, y) = tiny_classifier().train(), images()
    model.net.bn.momentum = 0.0
    start = PGD(0.1, step_size=0.05, steps=3, start="gaussian")
    losses = []
    for beta in (0.0, 3.0, 6.0):
        torch.manual_seed(0)
        losses.append(TRADES(beta)(model, x, y, start).loss)
    torch.testing.assert_close(losses[2] - losses[1], losses[1] - losses[0])
    assert losses[1] > losses[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [(lambda: TRADES(-1), r"beta.*[= ]-1"), (lambda: AdversarialCE(label_smoothing=1), r"label_smoothing.*[= ]1")],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
