"""FID, KID, MiFID, precision and recall: closed forms, limits and torchmetrics."""

import dataclasses

import pytest
import torch
from torch import nn
from torchmetrics.image.mifid import MemorizationInformedFrechetInceptionDistance

from lightning_paf.analysis.image_quality import image_quality, memorisation_distance


def test_a_set_against_itself():
    features = torch.randn(50, 4)
    found = image_quality(features, features)
    assert found.samples == 50
    assert found.fid == pytest.approx(0, abs=1e-10)
    assert (found.precision, found.recall) == (1, 1)
    assert found == image_quality(features, features)  # the subsets of KID have a seed


def test_the_frechet_distance_of_two_gaussians():
    first = torch.randn(400, 3, dtype=torch.float64)
    centred = first - first.mean(0)
    white = centred @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(centred.T)).T)  # mean 0, covariance I
    found = image_quality(white * torch.tensor([2.0, 3.0, 1.0]) + torch.tensor([0.0, 0.0, 5.0]), white)
    assert found.fid == pytest.approx(5**2 + (2 - 1) ** 2 + (3 - 1) ** 2)
    assert found.mifid >= found.fid


def test_the_kernel_distance_in_one_dimension():
    features, reference = torch.full((10, 1), 2.0), torch.ones(10, 1)
    found = image_quality(features, reference)  # E k(x, x') + E k(y, y') - 2 E k(x, y), k = (xy + 1)^3
    assert found.kid == pytest.approx(5**3 + 2**3 - 2 * 3**3)
    assert found.kid_std == pytest.approx(0, abs=1e-9)


def test_distant_sets_have_no_precision_and_no_recall():
    found = image_quality(torch.randn(30, 4) + 100, torch.randn(30, 4))
    assert (found.precision, found.recall) == (0, 0)


def test_mifid_is_that_of_torchmetrics_with_the_roles_of_the_paper():
    features, reference = torch.rand(60, 3) + 0.2, torch.rand(80, 3)
    published = MemorizationInformedFrechetInceptionDistance(nn.Identity())
    published.update(features.double(), real=True)
    published.update(reference.double(), real=False)
    assert image_quality(features, reference).mifid == pytest.approx(float(published.compute()))


def test_copies_of_one_reference_have_no_memorisation_distance():
    reference = torch.eye(10)
    assert memorisation_distance(reference[[3, 3, 3]] * 7, reference) == pytest.approx(0)
    assert memorisation_distance(-reference[[3]], reference) == pytest.approx(0)
    both = torch.cat([reference[[3]], reference[[3]] + reference[[4]]])  # cosines 1 and 1 / sqrt(2)
    assert memorisation_distance(both, reference) == pytest.approx((1 - 0.5**0.5) / 2, abs=1e-6)


@pytest.mark.parametrize(
    ("count", "value", "message"), [(3, 1.0, "at least 4 images, got 3"), (9, torch.nan, "finite")]
)
def test_unusable_features_are_refused(count, value, message):
    with pytest.raises(ValueError, match=message):
        image_quality(torch.full((count, 2), value), torch.randn(9, 2))


def test_all_values_are_plain_numbers_for_json():
    found = image_quality(torch.randn(10, 2), torch.randn(10, 2))
    assert {type(value) for value in dataclasses.asdict(found).values()} == {int, float}
