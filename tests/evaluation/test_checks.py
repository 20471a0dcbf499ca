"""Every planted disease is named by its check, and healthy models get a clean bill."""

import copy

import pytest
import torch
from helpers.check_fakes import (
    EPS,
    SPEC,
    BatchNormNet,
    Fake,
    constant_dropout,
    detached,
    digits,
    eight_levels,
    eight_levels_straight_through,
    input_noise,
    large,
    lucky_start,
    nan_gradient,
    no_gradient,
    probabilities,
    rare_gradient,
    ripples,
    trained,
    training_attack,
)
from helpers.fakes import images, tiny_classifier
from torch import nn

from lightning_paf.evaluation.checks import Finding, Symptom, smallest_gain, without_gradients
from lightning_paf.evaluation.checks import run as doctor
from lightning_paf.evaluation.checks.base import LARGEST_GAIN
from lightning_paf.evaluation.checks.run import SYMPTOMS, examine
from lightning_paf.evaluation.checks.smoothing import MeasuredGradient
from lightning_paf.nets.small import SmallConvNet
from lightning_paf.nn.classifier import Classifier
from lightning_paf.specs import DatasetSpec

N = 100


@pytest.fixture(scope="module")
def data():
    x_train, y_train, x, y = digits()
    return x_train[:1000], y_train[:1000], x[:N], y[:N]


@pytest.fixture(scope="module")
def robust(data):
    return trained(*data[:2], attack=training_attack())


@pytest.fixture(scope="module")
def batch_norm(data):
    return trained(*data[:2], net=BatchNormNet(dropout=0.3))


def ill(findings: list[Finding]) -> set[str]:
    return {finding.check for finding in findings if not finding.healthy}


def show(findings: list[Finding]) -> str:
    return "\n".join(f"{'ok ' if f.healthy else 'ILL'} {f.check}: {f.evidence}" for f in findings)


# Clean bills


def test_an_adversarially_trained_model_is_healthy(data, robust):
    findings = examine(robust, *data[2:], eps=EPS, spec=SPEC)
    assert [finding.check for finding in findings] == [symptom.name for symptom in SYMPTOMS]
    assert ill(findings) == set(), show(findings)


def test_a_model_that_is_not_robust_is_healthy(data):
    findings = examine(trained(*data[:2], net=SmallConvNet(width=8), epochs=4), *data[2:], eps=EPS, spec=SPEC)
    assert ill(findings) == set(), show(findings)


def test_l2_and_batch_norm_and_a_surrogate_are_healthy(data, robust, batch_norm):
    findings = examine(batch_norm, *data[2:], eps=0.6, norm="l2", surrogate=robust, spec=SPEC)
    assert ill(findings) == set(), show(findings)
    assert "surrogate" in findings[-1].evidence


# Planted diseases: what plants it, the checks that must name it, those that may speak as well.

MASKED = {"growing-eps", "black-box", "transfer"}
RESTLESS = {"more-starts", "more-steps", "logit-scale"}
FAKES = {
    "zero gradient": ({"before": no_gradient}, {"zero-gradients", "finite-differences", *MASKED}, set()),
    "detached input": ({"before": detached}, {"zero-gradients", "finite-differences", *MASKED}, set()),
    "NaN gradient": ({"before": nan_gradient}, {"zero-gradients"}, {"finite-differences", *MASKED}),
    "eight levels": (
        {"before": eight_levels},
        {"zero-gradients", "growing-eps", "black-box"},
        {"finite-differences", "transfer"},
    ),
    "straight through": ({"before": eight_levels_straight_through}, {"finite-differences"}, set()),
    "large logits": ({"after": large}, {"logit-scale"}, {"zero-gradients"}),
    "softmax": ({"after": probabilities}, {"softmax-outputs"}, {"logit-scale"}),
    "input noise": ({"before": input_noise}, {"random-outputs"}, RESTLESS),
    "dropout in eval": ({"before": constant_dropout}, {"random-outputs"}, RESTLESS),
    "slow attack": (
        {"before": rare_gradient},
        {"more-steps"},
        {"more-starts", "zero-gradients", "finite-differences", "growing-eps"},
    ),
    "lucky start": (
        {"before": lucky_start},
        {"more-starts"},
        {"more-steps", "zero-gradients", "finite-differences", "logit-scale", *MASKED},
    ),
    "rugged": ({"before": ripples}, {"black-box", "transfer"}, {"growing-eps", "more-starts", "more-steps"}),
}


@pytest.mark.parametrize("name", FAKES)
def test_a_planted_disease_is_named(name, data, robust, monkeypatch):
    monkeypatch.setattr(without_gradients, "_QUERIES", 150)  # on 64 pixels as good as 500, and faster
    planted, named, allowed = FAKES[name]
    findings = examine(Fake(robust, **planted).eval(), *data[2:], eps=EPS, spec=SPEC)
    assert named <= ill(findings) <= named | allowed, show(findings)


def test_missing_normalisation_is_named(data):
    spec = DatasetSpec("digits", 10, 8, (0.5,), (0.1,))
    model = trained(*data[:2], spec=spec)
    findings = examine(model.net, *data[2:], eps=EPS, spec=spec)
    assert ill(findings) & {"normalisation", "clean-accuracy"} == {"normalisation"}, show(findings)
    assert "mean and std of the dataset" in findings[6].evidence


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.Dropout, nn.Module])
def test_train_mode_is_named_and_left_as_it_was(kind, data, batch_norm, monkeypatch):
    monkeypatch.setattr(doctor, "SYMPTOMS", SYMPTOMS[:12])  # without those that take long
    model = copy.deepcopy(batch_norm)
    for module in model.modules():
        module.training = isinstance(module, kind)
    flags = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    findings = examine(model, *data[2:], eps=EPS)
    assert ill(findings) == {"train-mode"}, show(findings)
    assert findings[1].values["modules"]
    assert [module.training for module in model.modules()] == flags
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_train_mode_without_effect_is_reported_and_harmless(data, robust, monkeypatch):
    only(monkeypatch, "train-mode")
    (finding,) = examine(copy.deepcopy(robust).train(), *data[2:], eps=EPS)
    assert finding.healthy
    assert "in train mode came" in finding.evidence


def test_batch_statistics_are_named(data, monkeypatch):
    only(monkeypatch, "random-outputs", "batch-dependence")
    model = trained(*data[:2], net=BatchNormNet(running=False), epochs=1)
    assert ill(examine(model, *data[2:], eps=EPS)) == {"batch-dependence"}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda x: (x - 0.3) / 0.37, "1.892"),
        (lambda x: (255 * x).byte(), "255"),
        (lambda x: x / 255, "0.003922"),
        (lambda x: x.masked_fill(x == 0, torch.nan), "NaN"),
    ],
    ids=["normalised", "bytes", "divided twice", "NaN"],
)
def test_images_outside_their_range_end_the_examination(change, word, data, robust):
    findings = examine(robust, change(data[2]), data[3], eps=EPS)
    assert [finding.check for finding in findings] == ["pixel-range"]
    assert findings[0].final
    assert word in findings[0].evidence


def test_a_model_at_chance_ends_the_examination(data, robust):
    x, y = data[2:]
    for model, labels in ((robust, (y + 1) % 10), (Classifier(SmallConvNet(width=8), SPEC), y)):
        findings = examine(model, x, labels, eps=EPS)
        assert ill(findings) == {"clean-accuracy"}, show(findings)
        assert findings[-1].check == "clean-accuracy"


def test_nan_logits_end_the_examination(data, robust):
    findings = examine(Fake(robust, after=lambda z: z / (z - z[:, :1])), *data[2:], eps=EPS)
    assert findings[-1].check == "finite-outputs"
    assert not findings[-1].healthy


# The examination itself


def test_the_examination_is_repeatable_and_leaves_torch_alone(data, robust, monkeypatch):
    only(monkeypatch, "finite-differences", "more-starts", "transfer")
    threat = {"eps": EPS, "spec": SPEC, "seed": 3}
    before = torch.get_rng_state()
    first = examine(robust, *data[2:], **threat)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(5)
    assert examine(robust, *data[2:], **threat) == first
    assert all(parameter.requires_grad and parameter.grad is None for parameter in robust.parameters())


def test_batches_do_not_matter_to_the_fast_checks(data, robust, monkeypatch):
    only(monkeypatch, "softmax-outputs", "normalisation", "clean-accuracy", "zero-gradients")
    whole, parts = (examine(robust, *data[2:], eps=EPS, spec=SPEC, batch_size=size) for size in (128, 7))
    assert [(f.check, f.healthy) for f in whole] == [(f.check, f.healthy) for f in parts]


def test_a_model_with_a_fixed_precision_is_measured_in_it(data, robust, monkeypatch):
    only(monkeypatch, "finite-differences")
    healthy, wrong = (Fake(robust, before=lambda x, f=f: f(x.float())) for f in (torch.clone, no_gradient))
    (finding,) = examine(healthy, *data[2:], eps=EPS)
    assert finding.healthy, finding.evidence
    assert finding.values["precision"] == "single precision"
    assert not examine(wrong, *data[2:], eps=EPS)[0].healthy


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"norm": "l1"}, "--norm linf"),
        ({"x": images(8)[0], "y": images(8)[1]}, "--examples N"),
        ({"y": images(30)[1][:29]}, "integer labels"),
        ({"y": images(30)[1] + 10}, "same dataset"),
    ],
)
def test_what_cannot_be_examined_is_refused(changed, message):
    x, y = images(30)
    arguments = {"x": x, "y": y, "eps": EPS} | changed
    with pytest.raises(ValueError, match=message):
        examine(tiny_classifier(), **arguments)


def test_progress_names_each_check(data, robust, monkeypatch):
    only(monkeypatch, "pixel-range", "clean-accuracy")
    seen: list[str] = []
    examine(robust, *data[2:], eps=EPS, progress=seen.append)
    assert seen == ["pixel-range", "clean-accuracy"]


def test_the_smallest_gain_falls_towards_the_minimum_effect():
    gains = [smallest_gain(n) for n in (20, 100, 1000, 10_000)]
    assert gains == sorted(gains, reverse=True)
    assert LARGEST_GAIN < gains[-1] < LARGEST_GAIN + 0.01
    assert gains[1] == pytest.approx(0.12)


def test_every_check_explains_itself():
    assert len({symptom.name for symptom in SYMPTOMS}) == len(SYMPTOMS)
    assert set(SYMPTOMS) == set(Symptom.__subclasses__())
    for symptom in SYMPTOMS:
        assert symptom.why.endswith(".")
        assert symptom.remedy.endswith(".")


def test_a_measured_gradient_is_that_of_a_linear_model():
    weights = torch.randn(3, 4)
    model = Fake(nn.Flatten(), before=detached, after=lambda z: z @ weights.T)
    x = torch.rand(2, 1, 2, 2, requires_grad=True)
    outputs = MeasuredGradient(model, 0.1, pairs=3000)(x)
    assert torch.equal(outputs.detach(), model(x))
    (gradient,) = torch.autograd.grad(outputs[:, 1].sum(), x)
    assert torch.allclose(gradient, weights[1].view(1, 1, 2, 2).expand_as(x), atol=0.2)


def only(monkeypatch, *names: str) -> None:
    """Run some checks alone."""
    monkeypatch.setattr(doctor, "SYMPTOMS", tuple(symptom for symptom in SYMPTOMS if symptom.name in names))


class Ties(nn.Module):
    """A linear layer after features with a kink wherever neighbouring pixels are equal."""

    def __init__(self, kind: str, single: bool) -> None:
        super().__init__()
        conv = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        if kind == "edges":
            conv.weight.data -= conv.weight.data.mean((1, 2, 3), keepdim=True)
        self.features = {
            "max-pooling": nn.Sequential(conv, nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
            "edges": nn.Sequential(conv, nn.ReLU(), nn.AvgPool2d(2)),
            "median": nn.Sequential(nn.Unfold(3, padding=1), Median(), conv, nn.AvgPool2d(2)),
        }[kind]
        self.fc = nn.Linear(128, 10)
        self.single = single

    def forward(self, x):
        return self.fc(self.features(x.float() if self.single else x).flatten(1))


class Median(nn.Module):
    """Median of each patch (N, 9, 64) as an image."""

    def forward(self, patches):
        return patches.median(dim=1).values.view(-1, 1, 8, 8)


@pytest.mark.parametrize("single", [False, True], ids=["double", "single"])
@pytest.mark.parametrize("kind", ["max-pooling", "edges", "median"])
def test_ties_in_flat_regions_do_not_fail_finite_differences(kind, single, monkeypatch):
    only(monkeypatch, "finite-differences")
    x = torch.zeros(50, 1, 8, 8)
    x[:, :, 2:6, 2:6] = torch.rand(50, 1, 1, 1)
    model = Ties(kind, single).eval()
    y = model(x).argmax(1)
    (finding,) = examine(model, x, y, eps=EPS)
    assert finding.healthy, finding.evidence
    (finding,) = examine(Fake(model, before=eight_levels_straight_through), x, y, eps=EPS)
    assert not finding.healthy, finding.evidence
