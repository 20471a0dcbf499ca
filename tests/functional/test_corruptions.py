"""Corruptions of images."""

import pytest
import torch

from lightning_paf.functional.corruptions import CORRUPTIONS, constant, gaussian, uniform

X = torch.full((100, 1, 20, 20), 0.4)


def test_sizes():
    torch.manual_seed(0)
    change = gaussian(X, 0.1) - X
    assert (float(change.mean()), float(change.std())) == pytest.approx((0, 0.1), abs=2e-3)
    change = uniform(X, 0.3) - X
    assert (float(change.mean()), float(change.min()), float(change.max())) == pytest.approx((0.15, 0, 0.3), abs=2e-3)
    torch.testing.assert_close(constant(X, 0.1), X + 0.1)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_images_stay_in_range_and_level_zero_changes_nothing(name):
    strong = CORRUPTIONS[name](X, 5.0)
    assert strong.min() >= 0
    assert strong.max() == 1
    assert torch.equal(CORRUPTIONS[name](X, 0.0), X)
