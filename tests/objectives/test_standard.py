"""Natural and adversarial training."""

import pytest
import torch
from helpers.fakes import images, steady_classifier, tiny_classifier
from torch.nn import functional as F

from lightning_paf.attacks import PGD
from lightning_paf.objectives import AdversarialCE, Natural

ATTACK = PGD(0.1, step_size=0.05, steps=3, start="none")
X, Y = images()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_natural_is_cross_entropy_with_the_label_smoothing_of_torch(smoothing):
    model = tiny_classifier().train()
    expected = F.cross_entropy(model(X), Y, label_smoothing=smoothing)
    torch.testing.assert_close(Natural(smoothing)(model, X, Y, ATTACK).loss, expected)


@pytest.mark.parametrize("cls", [Natural, AdversarialCE])
def test_class_weights_are_factors_of_the_loss(cls):
    model = tiny_classifier()
    weights = [float(c + 1) for c in range(model.num_classes)]
    objective = cls(class_weights=weights)
    objective.bind(model)
    result = objective(model, X, Y, ATTACK)
    expected = (torch.tensor(weights)[Y] * F.cross_entropy(result.logits, Y, reduction="none")).mean()
    torch.testing.assert_close(result.loss, expected)
    assert not objective.state_dict()
    with pytest.raises(ValueError, match=r"class_weights must be .* numbers, one for each class, got 2\. Pass"):
        cls(class_weights=[1.0, 2.0]).bind(model)
    with pytest.raises(ValueError, match="class_weights must be positive and finite"):
        cls(class_weights=[0.0, *weights[1:]])


@pytest.mark.parametrize("bn_statistics", ["mixed", "adversarial"])
def test_adversarial_loss_is_cross_entropy_of_the_adversarial_images(bn_statistics):
    model = steady_classifier()
    expected = F.cross_entropy(model(ATTACK(model, X, Y)), Y)
    loss = AdversarialCE(bn_statistics)(model, X, Y, ATTACK).loss
    torch.testing.assert_close(loss, expected)
    assert loss > F.cross_entropy(model(X), Y)


def test_mixed_statistics_also_include_the_clean_batch():
    mixed, adversarial = tiny_classifier().train(), tiny_classifier().train()
    AdversarialCE("mixed")(mixed, X, Y, ATTACK)
    AdversarialCE("adversarial")(adversarial, X, Y, ATTACK)
    assert mixed.net.bn.num_batches_tracked == 2
    assert adversarial.net.bn.num_batches_tracked == 1
    assert not torch.equal(mixed.net.bn.running_mean, adversarial.net.bn.running_mean)
