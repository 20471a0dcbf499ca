"""Every planted fault fails its checks, and sound models pass all."""

import copy
import random

import numpy as np
import pytest
import torch
from helpers.check_fakes import (
    EPS,
    SPEC,
    Fake,
    batch_norm_net,
    digits,
    eight_levels,
    lucky_start,
    tie_net,
    trained,
    with_backward,
)
from helpers.fakes import images, tiny_classifier
from torch import Tensor, nn
from torch.nn.functional import dropout

from lightning_paf.attacks import PGD
from lightning_paf.evaluation.checks import CHECKS, Context, gradients, run_checks, smallest_visible_gain
from lightning_paf.evaluation.checks import context as checks_context
from lightning_paf.evaluation.checks.behaviour import (
    batch_dependence,
    clean_accuracy,
    normalisation,
    pixel_range,
    random_outputs,
    softmax_outputs,
    train_mode,
)
from lightning_paf.evaluation.checks.context import LARGEST_GAIN
from lightning_paf.nets.small import SmallConvNet
from lightning_paf.nn.classifier import Classifier
from lightning_paf.specs import DatasetSpec

NAMES = [check.__name__.replace("_", "-") for check in CHECKS]


@pytest.fixture(scope="module")
def data():
    x_train, y_train, x, y = digits()
    return x_train[:1000], y_train[:1000], x[:100], y[:100]


@pytest.fixture(scope="module")
def robust(data):
    return trained(*data[:2], attack=PGD(EPS, step_size=EPS / 2, steps=3))


@pytest.fixture(scope="module")
def batch_norm(data):
    return trained(*data[:2], batch_norm_net(dropout=0.3))


@pytest.fixture
def context(data, robust):
    """A function that makes a context: changes to the robust model on the digits."""
    return lambda model=robust, x=data[2], y=data[3], eps=EPS, **more: Context(model, x, y, eps, **more)


@pytest.fixture
def short_attacks(monkeypatch):
    monkeypatch.setattr(gradients, "_QUERIES", 100)  # on 64 pixels as good as 500, and faster
    monkeypatch.setattr(gradients, "_GROWTH_STEPS", 10)
    monkeypatch.setattr(checks_context, "MANY_STEPS", 50)


def failed(results):
    return {result.name for result in results if result.passed is False}


# Sound models


def test_an_adversarially_trained_model_passes(context):
    results = run_checks(context(spec=SPEC))
    assert [result.name for result in results] == NAMES
    assert all(result.passed and result.hint.endswith(".") for result in results), results


def test_a_model_that_is_not_robust_passes(data, context, short_attacks):
    assert not failed(run_checks(context(trained(*data[:2], epochs=4), spec=SPEC)))


def test_l2_and_batch_norm_and_a_surrogate_pass(context, robust, batch_norm, short_attacks):
    results = run_checks(context(batch_norm, eps=0.6, norm="l2", surrogate=robust, spec=SPEC))
    assert not failed(results), results
    assert "surrogate" in results[-1].measured


# Planted faults: the part, the checks that must fail, those that may fail as well.

MASKED = {"growing-eps", "black-box", "transfer"}
NOISY = {"more-starts", "more-steps", "logit-scale"}
ZERO = {"zero-gradients", "finite-differences", *MASKED}
FAKES = {
    "zero gradient": ({"before": with_backward(torch.zeros_like)}, ZERO, set()),
    "detached input": ({"before": Tensor.detach}, ZERO, set()),
    "NaN gradient": ({"before": lambda x: x + 0 * (x - x).sqrt()}, {"zero-gradients"}, ZERO),
    "eight levels": ({"before": eight_levels}, {"zero-gradients", "growing-eps", "black-box"}, ZERO),
    "straight through": ({"before": with_backward(torch.clone, eight_levels)}, {"finite-differences"}, set()),
    "large logits": ({"after": lambda z: 1e4 * z}, {"logit-scale"}, {"zero-gradients"}),
    "softmax": ({"after": lambda z: z.softmax(dim=1)}, {"softmax-outputs"}, {"logit-scale"}),
    "input noise": ({"before": lambda x: x + 0.1 * torch.randn_like(x)}, {"random-outputs"}, NOISY),
    "dropout in eval": ({"before": lambda x: dropout(x, 0.3, training=True)}, {"random-outputs"}, NOISY),
    "slow attack": (
        {"before": with_backward(lambda slope: slope * (torch.rand(len(slope), 1, 1, 1) < 0.1))},
        {"more-steps"},
        {"more-starts", "zero-gradients", "finite-differences", "growing-eps"},
    ),
    "lucky start": ({"before": lucky_start}, {"more-starts"}, {"more-steps", "logit-scale", *ZERO}),
    "rugged": (
        {"before": lambda x: x + 0.02 * torch.sin(300 * x)},
        {"black-box", "transfer"},
        {"growing-eps", "more-starts", "more-steps"},
    ),
}


@pytest.mark.parametrize(("fault", "named", "allowed"), FAKES.values(), ids=FAKES)
def test_a_planted_fault_fails_its_checks(fault, named, allowed, context, robust, short_attacks):
    results = run_checks(context(Fake(robust, **fault).eval(), spec=SPEC))
    assert named <= failed(results) <= named | allowed, results


@pytest.mark.parametrize("single", [False, True], ids=["double", "single"])
@pytest.mark.parametrize("kind", ["max-pooling", "edges", "median"])
def test_finite_differences_pass_at_ties_in_flat_regions(kind, single):
    x = torch.zeros(50, 1, 8, 8)
    x[:, :, 2:6, 2:6] = torch.rand(50, 1, 1, 1)
    model = Fake(tie_net(kind), before=lambda x: x.float() if single else x).eval()
    y = model(x).argmax(1)
    for part, passed in ((torch.clone, True), (with_backward(torch.clone, eight_levels), False)):
        (result,) = run_checks(Context(Fake(model, part).eval(), x, y, EPS), (gradients.finite_differences,))
        assert result.passed is passed, result
        assert result.values["precision"] == ("float64" if passed and not single else "single precision")


def test_missing_normalisation_fails(data, context):
    spec = DatasetSpec("digits", 10, 8, (0.5,), (0.1,))
    checks = (normalisation, clean_accuracy)
    results = run_checks(context(trained(*data[:2], spec=spec).net, spec=spec), checks)
    assert failed(results) == {"normalisation"}, results
    assert "mean and std of the dataset" in results[0].measured


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.Dropout, nn.Module])
def test_train_mode_fails_and_is_left_as_found(kind, context, batch_norm):
    model = copy.deepcopy(batch_norm)
    for module in model.modules():
        module.training = isinstance(module, kind)
    flags = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    results = run_checks(context(model), CHECKS[:12])  # without the long ones
    assert failed(results) == {"train-mode"}, results
    assert results[1].values["modules"]
    assert [module.training for module in model.modules()] == flags
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)


def test_train_mode_without_effect_passes_and_is_reported(context, robust):
    (result,) = run_checks(context(copy.deepcopy(robust).train()), (train_mode,))
    assert result.passed
    assert "in train mode: the model" in result.measured


def test_batch_statistics_fail(data, context):
    model = trained(*data[:2], batch_norm_net(running=False), epochs=1)
    assert failed(run_checks(context(model), (random_outputs, batch_dependence))) == {"batch-dependence"}


# Preconditions

OUTSIDE = {
    "normalised": (lambda x: (x - 0.3) / 0.37, "1.892"),
    "bytes": (lambda x: (255 * x).byte(), "255"),
    "divided twice": (lambda x: x / 255, "0.003922"),
    "NaN": (lambda x: x.masked_fill(x == 0, torch.nan), "NaN"),
}


@pytest.mark.parametrize(("change", "word"), OUTSIDE.values(), ids=OUTSIDE)
def test_images_outside_their_range_skip_the_rest(change, word, data, context):
    first, *others = run_checks(context(x=change(data[2])))
    assert (first.name, first.passed) == ("pixel-range", False)
    assert word in first.measured
    assert {(result.passed, result.skipped) for result in others} == {(None, "pixel-range failed")}


def test_other_preconditions_skip_the_rest(data, context, robust):
    untrained, y = Classifier(SmallConvNet(width=8), SPEC), data[3]
    undefined = Fake(robust, after=lambda z: z / (z - z[:, :1])).eval()
    for broken, name in (
        (context(y=(y + 1) % 10), "clean-accuracy"),
        (context(untrained), "clean-accuracy"),
        (context(undefined), "finite-outputs"),
    ):
        results = run_checks(broken)
        assert failed(results) == {name}, results
        assert [r.name for r in results if r.skipped] == NAMES[NAMES.index(name) + 1 :]


# The runner


class Draws(nn.Module):
    """Draws from every kind of generator, counts its calls in a buffer, and passes the images on."""

    def __init__(self):
        super().__init__()
        self.own = torch.Generator()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x + 1e-9 * (random.random() + np.random.rand() + torch.rand(1, generator=self.own) + torch.rand(1))  # noqa: NPY002


def test_model_and_generators_are_left_as_found_and_results_are_repeatable(context, robust):
    draws = Draws()
    checks = (random_outputs, gradients.finite_differences, gradients.more_starts, gradients.transfer)

    def states():
        generators = (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
        return *generators, torch.get_rng_state().tolist(), draws.own.get_state().tolist(), draws.calls.item()

    before = states()
    first = run_checks(context(Fake(robust, draws).eval(), seed=3), checks)
    assert states() == before
    torch.rand(5)
    reverse = run_checks(context(Fake(robust, draws).eval(), seed=3), checks[::-1])
    assert reverse[::-1] == first
    assert all(parameter.requires_grad and parameter.grad is None for parameter in robust.parameters())


def test_results_of_the_fast_checks_do_not_depend_on_the_batch_size(context):
    checks = (softmax_outputs, normalisation, clean_accuracy, gradients.zero_gradients)
    whole, parts = (run_checks(context(spec=SPEC, batch_size=size), checks) for size in (128, 7))
    assert [(r.name, r.passed) for r in whole] == [(r.name, r.passed) for r in parts]


def test_progress_gets_the_name_of_each_check(context):
    seen: list[str] = []
    run_checks(context(), (pixel_range, clean_accuracy), seen.append)
    assert seen == ["pixel-range", "clean-accuracy"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"norm": "l1"}, "--norm linf"),
        ({"x": images(8)[0], "y": images(8)[1]}, "--examples N"),
        ({"y": images(30)[1][:29]}, "integer labels"),
        ({"y": images(30)[1] + 10}, "same dataset"),
    ],
)
def test_unsupported_arguments_are_refused(changed, message):
    x, y = images(30)
    with pytest.raises(ValueError, match=message):
        Context(tiny_classifier(), **{"x": x, "y": y, "eps": EPS} | changed)


def test_the_smallest_visible_gain_falls_towards_the_minimum_effect():
    gains = [smallest_visible_gain(n) for n in (20, 100, 1000, 10_000)]
    assert gains == sorted(gains, reverse=True)
    assert LARGEST_GAIN < gains[-1] < LARGEST_GAIN + 0.01
    assert gains[1] == pytest.approx(0.12)


def test_an_estimated_gradient_is_that_of_a_linear_model():
    weights = torch.randn(3, 4)
    model = Fake(nn.Flatten(), before=Tensor.detach, after=lambda z: z @ weights.T)
    x = torch.rand(2, 1, 2, 2, requires_grad=True)
    outputs = gradients.EstimatedGradient(model, 0.1, pairs=3000)(x)
    assert torch.equal(outputs.detach(), model(x))
    (gradient,) = torch.autograd.grad(outputs[:, 1].sum(), x)
    assert torch.allclose(gradient, weights[1].view(1, 1, 2, 2).expand_as(x), atol=0.2)
