"""Verification recomputes every claim: forged evidence leads to a mismatch."""

from fractions import Fraction
from importlib.metadata import version

import numpy as np
import pytest
import torch
from helpers.evidence_fakes import CONFIG, EPS, attacked, first_pixels, forge, threat, written
from safetensors.numpy import load_file
from scipy.stats import binomtest
from torch import nn

from lightning_paf.evaluation import Samples
from lightning_paf.evaluation.evidence import CHECKS, read, verify


@pytest.fixture
def parts(tmp_path):
    """Evidence of an attack with its model and samples."""
    model, samples, result = attacked()
    return written(tmp_path / "r", samples, result), model, samples


def named(found):
    return {(mismatch.check, mismatch.sample) for mismatch in found.mismatches}


def test_intact_evidence_holds_with_the_exact_interval(parts):
    evidence = parts[0]
    robust, fooled, misclassified = (np.count_nonzero(evidence.outcomes == code) for code in (1, 2, 3))
    assert min(robust, fooled, misclassified) >= 3
    found = verify(*parts, CONFIG)
    assert (found.ok, found.notes, found.proven) == (True, (), fooled + misclassified)
    counts = {"inputs": 40, "misclassified": misclassified, "robust": robust, "weights": 1, "configuration": 1}
    assert found.checked == counts | dict.fromkeys(("box", "ball", "fooled"), fooled)
    assert found.checked.keys() == CHECKS.keys()
    interval = binomtest(int(robust), 40).proportion_ci(0.95, method="exact")
    assert (found.upper_bound.low, found.upper_bound.high) == (interval.low, interval.high)
    assert f"robust accuracy of this model is at most {found.upper_bound} (linf, eps=8/255)" in str(found)
    assert f"Not proven, and not provable by evidence: robustness on the other {robust}." in str(found)


@pytest.mark.parametrize("batch", [128, 3])
def test_every_sample_is_passed_forward_once(path, batch):
    model, samples, _ = first_pixels()
    steps = []
    assert verify(read(path), model, samples, CONFIG, steps.append, batch).ok
    assert model.images == sum(steps) == 4


# Changes of tensors (position: value) and metadata, and the mismatches that they lead to.
TAMPERED = {
    "label": ({"labels": {0: 1}, "outcomes": {0: 3}}, {}, {("inputs", 0)}),
    "hash of an input": ({"inputs": {(3, 7): 0}}, {}, {("inputs", 3)}),
    "robust is misclassified": ({"outcomes": {3: 1}}, {}, {("robust", 3)}),
    "misclassified is robust": ({"outcomes": {0: 3}}, {}, {("misclassified", 0)}),
    "image does not fool": ({"x_adv": {(0, 0, 0, 0): 125 / 255}}, {}, {("fooled", 1)}),
    "image of another sample": ({"x_adv": {1: 0.0}}, {}, {("fooled", 2), ("ball", 2)}),
    "outside of the ball": ({"x_adv": {(0, 0, 0, 0): 133.1 / 255}}, {}, {("ball", 1)}),
    "outside of the box": ({"x_adv": {(0, 0, 0, 0): 1.5}}, {}, {("ball", 1), ("box", 1)}),
    "not a number": ({"x_adv": {(1, 0, 0, 1): np.nan}}, {}, {("ball", 2), ("box", 2)}),
    "smaller eps": ({}, threat(eps="7/255", eps_value=7 / 255), {("ball", 1), ("ball", 2)}),
    "other norm": ({}, threat(norm="l1", eps="1/64", eps_value=1 / 64), {("ball", 1), ("ball", 2)}),
    "weights": ({}, {"weights": "\x1b[2J"}, {("weights", None)}),
    "configuration": ({}, {"config": "0" * 64}, {("configuration", None)}),
}  # fmt: skip


@pytest.mark.parametrize(("tensors", "metadata", "mismatches"), TAMPERED.values(), ids=TAMPERED)
def test_forged_evidence_leads_to_mismatches(path, tensors, metadata, mismatches):
    model, samples, _ = first_pixels()
    arrays = {name: load_file(path)[name] for name in tensors}
    for name, edits in tensors.items():
        for position, value in edits.items():
            arrays[name][position] = value
    found = verify(read(forge(path, arrays, **metadata)), model, samples, CONFIG)
    assert named(found) == mismatches
    assert not found.ok
    wrong = {sample for _, sample in mismatches} - {None}
    assert found.proven == 3 - len(wrong - {0})


@pytest.mark.parametrize(("by", "inside"), [(0, True), (2**-25, True), (2**-22, False), (-(2**-22), True)])
def test_the_ball_allows_half_a_unit_in_the_last_place(path, by, inside):
    model, samples, _ = first_pixels()
    images = load_file(path)["x_adv"]
    images[0, 0, 1, 1] = np.float32(0.25 + float(EPS) + by)
    assert verify(read(forge(path, {"x_adv": images})), model, samples, CONFIG).ok is inside


@pytest.mark.parametrize(("norm", "size"), [("linf", 0.4), ("l2", 0.5), ("l1", 0.7)])
def test_distances_are_norms_and_sums_have_more_slack(path, norm, size):
    x = np.full((1, 1, 1, 2), 0.5, np.float32)
    for times, inside in ((1 + 5e-7, norm != "linf"), (1 + 2e-6, False)):
        eps = Fraction(size / times).limit_denominator(10**9)
        evidence = read(forge(path, **threat(norm=norm, eps=str(eps), eps_value=float(eps))))
        distance = evidence.distances(x, x + np.array([0.3, -0.4], np.float32))[0]
        assert distance == pytest.approx(size, rel=1e-7)
        assert (distance <= evidence.limit) == inside


def test_other_data_and_weights_are_mismatches(parts):
    evidence, model, samples = parts
    x, y = samples.fetch(samples.ids)
    x[5, 0, 0, 0] += 2**-20
    y[9] = (y[9] + 1) % 10
    assert {("inputs", 5), ("inputs", 9)} <= named(verify(evidence, model, Samples.of(x, y), CONFIG))
    with torch.no_grad():
        model.net.fc.bias[0] = torch.nan
    found = verify(evidence, model, samples, CONFIG)
    assert {check for check, _ in named(found)} == {"weights", "robust"}


def test_data_of_another_size_are_refused(parts):
    evidence, model, samples = parts
    x, y = samples.fetch(samples.ids)
    with pytest.raises(ValueError, match=r"the shape \(3, 8, 8\) of the evidence, got \(3, 4, 8\)"):
        verify(evidence, model, Samples.of(x[:, :, :4], y))
    with pytest.raises(ValueError, match="got 5 missing ones, first 35"):
        verify(evidence, model, Samples.of(x[:35], y[:35]))


def test_differences_without_influence_on_the_result_are_noted(path):
    model, samples, _ = first_pixels()
    versions = {"torch": "1.0", "jax": "3"}
    classes = np.array([0, 2, 1, 1])
    x, y = samples.fetch(samples.ids)
    more = Samples(np.arange(4)[::-1].copy(), lambda ids: (x[ids], y[ids]))
    forge(path, {"adversarial": classes}, versions=versions, total=100, code="0" * 64, network="0" * 64)
    found = verify(read(path), model, more)
    assert found.ok
    notes = "\n".join(found.notes)
    for words in (
        "after 4 of 100 samples", "not the first of the data", "another wrong class than recorded for 1 samples",
        "normalisation of the images", f"torch: here {version('torch')}, evidence 1.0.",
        "jax: here absent, evidence 3.",
        "evaluation code has changed", "configuration was not compared",
    ):  # fmt: skip
        assert words in notes


class PrecisionSpy(nn.Module):
    """Records the precision and the mode of a forward pass."""

    def forward(self, x):
        self.seen = (torch.backends.cudnn.conv.fp32_precision, (x.flatten(1) @ x.flatten(1).T).dtype, self.training)
        return x.flatten(1)


def test_logits_are_computed_in_single_precision(path):
    before, model = torch.backends.cudnn.conv.fp32_precision, PrecisionSpy().train()
    with torch.autocast("cpu", torch.bfloat16):
        verify(read(path), model, first_pixels()[1])
    assert model.seen == ("ieee", torch.float32, False)
    assert model.training
    assert torch.backends.cudnn.conv.fp32_precision == before
