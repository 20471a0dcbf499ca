"""Certificates of images: checks, cascade of methods, evaluation, and consistency with attacks."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_paf.attacks import PGD
from lightning_paf.evaluation import Evaluation, EvaluationResult, Samples
from lightning_paf.evaluation.certificates import certify
from lightning_paf.evaluation.certificates.records import check_consistent
from lightning_paf.nn.activations import ReLU


class Brightness(nn.Module):
    """Two classes by the mean pixel, with the margin `scale * (mean - 1/2)` of class 1."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.flatten, self.fc = nn.Flatten(), nn.Linear(16, 2)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[0.0], [scale / 16]]).expand(2, 16))
            self.fc.bias.copy_(torch.tensor([0.0, -scale / 2]))

    def forward(self, x):
        return self.fc(self.flatten(x))


class Noisy(Brightness):
    def forward(self, x):
        return super().forward(x) + torch.rand(2)


class Constant(Brightness):
    def forward(self, x):
        return super().forward(x) + super().forward(x.data)


class OtherReLU(ReLU):
    def forward(self, x):
        return x.abs()


LEVELS = (0.2, 0.45, 0.52, 0.9)
X = torch.tensor(LEVELS).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
Y = torch.tensor([0, 0, 1, 0])


@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown", "alpha-crown"])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.4)])
def test_margins_of_a_linear_classifier_are_exact(method, norm, eps):
    found = certify(Brightness(), X, Y, eps, norm, method)
    distances = torch.tensor([0.3, 0.05, 0.02, -0.4], dtype=torch.float64)
    expected = distances - 0.1  # an l2 ball of radius 0.4 changes the mean of 16 pixels by 0.1 too
    if not (norm == "l2" and method == "ibp"):
        torch.testing.assert_close(found.margins, expected, atol=1e-4, rtol=0)
    assert found.certified.tolist() == [True, False, False, False]


def test_pixels_outside_of_the_unit_interval_are_not_in_the_ball():
    found = certify(Brightness(), torch.ones(1, 1, 4, 4) * 0.95, torch.tensor([1]), 0.2, "linf", "ibp")
    assert float(found.margins) == pytest.approx(0.25, abs=1e-4)
    dark = certify(Brightness(), torch.full((1, 1, 4, 4), 0.05), torch.tensor([1]), 0.2, "linf", "ibp")
    assert float(dark.margins) == pytest.approx(-0.5, abs=1e-4)


def test_batches_and_progress():
    reported = []
    found = certify(Brightness(), X, Y, 0.1, batch_size=3, progress=reported.append)
    torch.testing.assert_close(found.margins, certify(Brightness(), X, Y, 0.1).margins)
    assert reported == [3, 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "magic"}, "method must be one of ibp, crown-ibp, crown, alpha-crown, got 'magic'"),
        ({"eps": 0}, "eps must be above 0 and finite, got 0"),
        ({"eps": -0.1}, "eps must be above 0"),
        ({"norm": "l1"}, "norm must be one of linf, l2 for certificates"),
        ({"images": X + 1}, "pixels in \\[0, 1\\]"),
        ({"labels": Y.float()}, "y must be class labels"),
        ({"model": nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 2))}, "MaxPool2d \\(0\\)"),
        ({"model": Noisy()}, "cannot trace"),
        ({"model": Constant()}, "function getattr"),
        ({"model": nn.Sequential(nn.Conv2d(1, 2, 4), OtherReLU(), nn.Flatten())}, "OtherReLU \\(1\\)"),
        ({"model": nn.Sequential(nn.Conv2d(1, 2, 4), nn.GELU(), nn.Flatten())}, "GELU \\(1\\)"),
    ],
)
def test_bad_input_is_refused(changes, message):
    arguments = {"model": Brightness(), "images": X, "labels": Y, "eps": 0.1} | changes
    with pytest.raises(ValueError, match=message):
        certify(**arguments)


def evaluated(certify_by, eps=0.1):
    samples = Samples(np.arange(4), lambda ids: (X[ids], Y[ids]))
    return Evaluation(Brightness(), PGD(eps, step_size=eps, steps=2), samples, block_size=3, certify=certify_by).run()


def test_certified_samples_are_not_attacked():
    plain, result = evaluated(None), evaluated("crown")
    assert result.outcomes.tolist() == plain.outcomes.tolist() == [1, 2, 2, 3]
    assert result.certified.tolist() == [True, False, False, False]
    assert (result.certified_robust.correct, result.robust.correct) == (1, 1)
    assert plain.certified_robust is None
    labels = [part.label for part in result.sub_attacks]
    assert labels == ["clean", "certificate", "pgd"]
    assert [part.attacked for part in result.sub_attacks] == [4, 3, 2]
    assert result.identity != plain.identity
    assert [ids.tolist() for ids, _ in result.examples()] == [[1, 2]]


def test_certificates_are_saved(tmp_path):
    result = evaluated("ibp")
    result.save(tmp_path / "a.json")
    loaded = EvaluationResult.load(tmp_path / "a.json")
    assert loaded.certified.tolist() == result.certified.tolist()
    assert loaded.certified_robust == result.certified_robust


def test_a_contradiction_is_an_error():
    with pytest.raises(ValueError, match="must not be fooled, got 7 with a certificate by crown"):
        check_consistent(np.array([7]), "crown")
    check_consistent(np.array([], np.int64), "crown")
