"""Every fault fails its checks, and sound models pass all."""

import copy
import random

import numpy as np
import pytest
import torch
from helpers.check_fakes import eight_levels, lucky_start, tie_net, with_backward
from helpers.digits_net import digits, lambda_module, trained
from helpers.fakes import images, spec, tiny_classifier
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_paf.attacks import PGD
from lightning_paf.evaluation.checks import CHECKS, Context, behaviour, gradients, run_checks, smallest_visible_gain
from lightning_paf.evaluation.checks import context as checks_context
from lightning_paf.specs import DatasetSpec

EPS = 0.2
NAMES = [check.__name__.replace("_", "-") for check in CHECKS]
NET, X, Y = digits(60)


@pytest.fixture(scope="module")
def robust():
    """The network after an epoch of adversarial training."""
    torch.manual_seed(0)
    _, x, y = trained()
    model, attack = copy.deepcopy(NET).requires_grad_(True), PGD(EPS, step_size=EPS / 2, steps=3)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(4):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            cross_entropy(model(attack(model, x[rows], y[rows])), y[rows]).backward()
            optimizer.step()
    optimizer.zero_grad()
    return model


@pytest.fixture
def short_attacks(monkeypatch):
    monkeypatch.setattr(gradients, "_QUERIES", 60)  # enough for 64 pixels
    monkeypatch.setattr(gradients, "_GROWTH_STEPS", 10)
    monkeypatch.setattr(checks_context, "MANY_STEPS", 45)
    monkeypatch.setattr(checks_context, "RESTARTS", 3)


def context(model=NET, x=X, y=Y, eps=EPS, **more):
    return Context(model, x, y, eps, **more)


def chain(*parts):
    """A sequence of modules and functions."""
    return nn.Sequential(*(part if isinstance(part, nn.Module) else lambda_module(part) for part in parts)).eval()


def failed(results):
    return {result.name for result in results if result.passed is False}


def test_an_adversarially_trained_model_passes(robust, short_attacks):
    results = run_checks(context(robust, spec=spec(channels=1)))
    assert [result.name for result in results] == NAMES
    assert all(result.passed and result.hint.endswith(".") for result in results), results
    assert results[-1].values["after"] > 0.3


def test_a_model_that_is_not_robust_passes_in_l2_with_a_surrogate(robust, short_attacks):
    results = run_checks(context(eps=0.6, norm="l2", surrogate=robust, spec=spec(channels=1)))
    assert not failed(results), results
    assert "surrogate" in results[-1].measured


# Faults: the part before or after the network, the checks that must fail, and those that are allowed to fail.

MASKED = {"growing-eps", "black-box", "transfer"}
NOISY = {"more-starts", "more-steps", "logit-scale"}
ZERO = {"zero-gradients", "finite-differences", *MASKED}
RARE = with_backward(lambda slope: slope * (torch.rand(len(slope), 1, 1, 1) < 0.1))
FAULTS = {
    "detached input": ((Tensor.detach, NET), ZERO, set()),
    "NaN gradient": ((lambda x: x + 0 * (x - x).sqrt(), NET), {"zero-gradients"}, ZERO),
    "eight levels": ((eight_levels, NET), {"zero-gradients", "growing-eps", "black-box"}, ZERO),
    "straight through": ((with_backward(torch.clone, eight_levels), NET), {"finite-differences"}, set()),
    "large logits": ((NET, lambda z: 1e4 * z), {"logit-scale"}, {"zero-gradients"}),
    "softmax": ((NET, lambda z: z.softmax(dim=1)), {"softmax-outputs"}, {"logit-scale"}),
    "input noise": ((lambda x: x + 0.1 * torch.randn_like(x), NET), {"random-outputs"}, NOISY),
    "slow attack": (
        (RARE, NET),
        {"more-steps"},
        {"more-starts", "zero-gradients", "finite-differences", "growing-eps"},
    ),
    "lucky start": (
        (lucky_start, NET),
        {"more-starts"},
        {"more-steps", "logit-scale", "smoothed-gradients", *ZERO},
    ),
    "rugged": (
        (lambda x: x + 0.02 * torch.sin(300 * x), NET),
        {"black-box", "smoothed-gradients", "transfer"},
        {"growing-eps", "more-starts", "more-steps"},
    ),
}


@pytest.mark.parametrize(("parts", "named", "allowed"), FAULTS.values(), ids=FAULTS)
def test_a_fault_fails_its_checks(parts, named, allowed, short_attacks):
    results = run_checks(context(chain(*parts)))
    assert named <= failed(results) <= named | allowed, results


@pytest.mark.parametrize("single", [False, True], ids=["double", "single"])
@pytest.mark.parametrize("kind", ["max-pooling", "edges", "median"])
def test_finite_differences_pass_at_ties_in_flat_regions(kind, single):
    x = torch.zeros(50, 1, 8, 8)
    x[:, :, 2:6, 2:6] = torch.rand(50, 1, 1, 1)
    model = chain(Tensor.float, tie_net(kind)) if single else tie_net(kind)
    for part, passed in ((torch.clone, True), (with_backward(torch.clone, eight_levels), False)):
        (result,) = run_checks(context(chain(part, model), x, model(x).argmax(1)), [gradients.finite_differences])
        assert result.passed is passed, result
        assert result.values["precision"] == ("float64" if passed and not single else "single precision")


def test_missing_normalisation_fails():
    model = chain(lambda x: 0.1 * x + 0.5, NET)
    results = run_checks(context(model, spec=DatasetSpec("digits", 10, 8, (0.5,), (0.1,))), [behaviour.normalisation])
    assert failed(results) == {"normalisation"}, results
    assert "mean and std of the dataset" in results[0].measured


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.Dropout, nn.Module])
def test_train_mode_fails_and_is_left_as_found(kind):
    model = copy.deepcopy(chain(nn.Dropout(0.3), NET))
    for module in model.modules():
        module.training = isinstance(module, kind)
    flags, state = [module.training for module in model.modules()], copy.deepcopy(model.state_dict())
    results = run_checks(context(model), CHECKS[:9])
    assert failed(results) == {"train-mode"}, results
    assert results[1].values["modules"]
    assert [module.training for module in model.modules()] == flags
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)


def test_train_mode_without_effect_passes_and_is_reported():
    model = chain(NET, nn.Identity())
    model[1].train()
    (result,) = run_checks(context(model), [behaviour.train_mode])
    assert result.passed
    assert "in train mode: 1" in result.measured


def test_batch_statistics_fail():
    model = copy.deepcopy(NET)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = module.running_var = None
    assert failed(run_checks(context(model), CHECKS[:8])) == {"batch-dependence"}


NO_LOGITS = chain(NET, lambda z: z / (z - z[:, :1]))
SKIPPING = {
    "normalised": ({"x": (X - 0.3) / 0.37}, "pixel-range", "1.892"),
    "bytes": ({"x": (255 * X).byte()}, "pixel-range", "255"),
    "divided twice": ({"x": X / 255}, "pixel-range", "0.003922"),
    "NaN": ({"x": X.masked_fill(X == 0, torch.nan)}, "pixel-range", "NaN"),
    "undefined": ({"model": NO_LOGITS}, "finite-outputs", "100.0 % of the samples"),
    "wrong labels": ({"y": (Y + 1) % 10}, "clean-accuracy", "chance 10."),
    "untrained": ({"model": tie_net("edges")}, "clean-accuracy", "chance"),
}


@pytest.mark.parametrize(("changes", "name", "word"), SKIPPING.values(), ids=SKIPPING)
def test_a_failed_precondition_skips_the_rest(changes, name, word):
    results = run_checks(context(**changes))
    number = NAMES.index(name) + 1
    assert failed(results) == {name}, results
    assert word in results[number - 1].measured
    assert [(r.passed, r.skipped) for r in results[number:]] == [(None, f"{name} failed")] * (len(NAMES) - number)


class Draws(nn.Module):
    """Draws from every kind of generator, and counts its calls in a buffer."""

    def __init__(self):
        super().__init__()
        self.own = torch.Generator()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        drawn = random.random() + np.random.rand() + torch.rand(1, generator=self.own) + torch.rand(1)  # noqa: NPY002
        return x + 1e-9 * drawn


def test_model_and_generators_are_left_as_found_and_results_are_repeatable(robust, short_attacks):
    draws = Draws()
    checks = [behaviour.random_outputs, gradients.finite_differences, gradients.more_starts, gradients.transfer]

    def states():
        shared = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
        return *shared, draws.own.get_state().tolist(), draws.calls.item()

    before = states()
    few = {"x": X[:30], "y": Y[:30], "seed": 3}
    first = run_checks(context(chain(draws, robust), **few), checks)
    assert states() == before
    torch.rand(5)
    assert run_checks(context(chain(draws, robust), **few), checks[::-1])[::-1] == first
    assert all(parameter.requires_grad and parameter.grad is None for parameter in robust.parameters())


def test_results_of_the_fast_checks_do_not_depend_on_the_batch_size():
    seen: list[str] = []
    checks = [behaviour.softmax_outputs, behaviour.normalisation, behaviour.clean_accuracy, gradients.zero_gradients]
    one, several = (run_checks(context(batch_size=size), checks, seen.append) for size in (128, 7))
    assert [(r.name, r.passed) for r in one] == [(r.name, r.passed) for r in several]
    assert seen == 2 * ["softmax-outputs", "normalisation", "clean-accuracy", "zero-gradients"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"norm": "l1"}, "--norm linf"),
        ({"x": images(8)[0], "y": images(8)[1]}, "--examples 100"),
        ({"y": images(30)[1][:29]}, "y must be class labels"),
        ({"y": images(30)[1] + 10}, "labels from 10"),
    ],
)
def test_unsupported_arguments_are_refused(changed, message):
    x, y = images(30)
    with pytest.raises(ValueError, match=message):
        Context(tiny_classifier(), **{"x": x, "y": y, "eps": EPS} | changed)


def test_the_smallest_visible_gain_falls_towards_the_minimum_effect():
    gains = [smallest_visible_gain(n) for n in (20, 100, 1000, 10_000)]
    assert gains == sorted(gains, reverse=True)
    assert 0.05 < gains[-1] < 0.06
    assert gains[1] == pytest.approx(0.12)


def test_an_estimated_gradient_is_that_of_a_linear_model():
    weights = torch.randn(3, 4)
    model = chain(Tensor.detach, nn.Flatten(), lambda z: z @ weights.T)
    x = torch.rand(2, 1, 2, 2, requires_grad=True)
    outputs = gradients.EstimatedGradient(model, 0.1, pairs=1500)(x)
    assert torch.equal(outputs.detach(), model(x))
    (gradient,) = torch.autograd.grad(outputs[:, 1].sum(), x)
    assert torch.allclose(gradient, weights[1].view(1, 1, 2, 2).expand_as(x), atol=0.3)
