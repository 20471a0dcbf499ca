"""Accuracies of a protected class, compared with a confusion matrix."""

import numpy as np
import pytest

from lightning_paf.analysis.protection import mean_protection, protection

#           true 0        true 1           true 2
CONFUSION = [[6, 1, 1], [2, 3, 0], [1, 1, 5]]
LABELS = np.repeat(np.arange(3), [8, 5, 7])
PREDICTIONS = np.concatenate([np.repeat(np.arange(3), row) for row in CONFUSION])


def test_fractions_are_those_of_the_confusion_matrix():
    found = protection(LABELS, PREDICTIONS, 0)
    assert found.own == 6 / 8
    assert found.others == pytest.approx(8 / 12)
    assert found.taken == pytest.approx(3 / 12)
    assert found.overall == pytest.approx(14 / 20)


def test_i_is_the_mean_over_protected_classes():
    found = [protection(LABELS, PREDICTIONS, label) for label in range(3)]
    assert mean_protection(found) == pytest.approx((6 / 8 + 3 / 5 + 5 / 7) / 3)


@pytest.mark.parametrize(("labels", "label"), [([1, 1], 1), ([1, 1], 0)])
def test_samples_of_the_class_and_of_others_are_required(labels, label):
    with pytest.raises(ValueError, match=f"must include class {label} and other classes, got [02] of class {label}"):
        protection(np.array(labels), np.array(labels), label)
