"""Kernel ridge regression: interpolation, gradients, kept solutions, attacks and checks."""

import copy

import pytest
import torch
from helpers.fakes import spec
from torch.func import functional_call

from lightning_paf.attacks import PGD, Square
from lightning_paf.evaluation.checks import Context, behaviour, gradients, run_checks
from lightning_paf.functional.losses import centred_targets, squared_error
from lightning_paf.functional.predictions import misclassified
from lightning_paf.nets import KernelClassifier
from lightning_paf.nn.classifier import Classifier
from lightning_paf.speed.search_model import SearchModel


def net(support: int = 12, classes: int = 3, **options) -> KernelClassifier:
    torch.manual_seed(0)
    return KernelClassifier(1, classes, **{"image_size": 4, "support": support, **options})


def test_targets_are_balanced_and_their_rows_sum_to_zero():
    found = net(7)
    assert found.classes.tolist() == [0, 1, 2, 0, 1, 2, 0]
    torch.testing.assert_close(found.targets.sum(1), torch.zeros(7))
    torch.testing.assert_close(found.targets[1], torch.tensor([-1 / 3, 2 / 3, -1 / 3]))
    assert centred_targets(torch.tensor([[0.5, 0.5]]), 2).tolist() == [[0, 0]]


@pytest.mark.parametrize("depth", [1, 2])
def test_without_regularisation_it_interpolates_its_images(depth):
    regression = net(ridge=1e-12, depth=depth)
    with torch.no_grad():
        torch.testing.assert_close(regression(regression.images), regression.targets, atol=1e-3, rtol=0)
        assert net(ridge=1e6)(regression.images).abs().max() < 1e-4


def test_a_linear_kernel_is_ridge_regression():
    regression = net(depth=0, ridge=0.1)
    s, y, x = regression.images.flatten(1).double(), regression.targets.double(), torch.rand(5, 1, 4, 4)
    shift = 0.1 * (s @ s.T / 16).diagonal().mean()
    weights = torch.linalg.solve(s.T @ s / 16 + shift * torch.eye(16), s.T @ y) / 16
    torch.testing.assert_close(regression(x), (x.flatten(1).double() @ weights).float())


@pytest.mark.parametrize("learn_labels", [False, True])
def test_gradients_of_images_and_targets_are_those_of_differences(learn_labels):
    regression = net(5, 2, learn_labels=learn_labels, image_size=2).double()
    x, y = torch.rand(3, 1, 2, 2).double(), torch.tensor([0, 1, 0])
    names = [name for name, _ in regression.named_parameters()]
    assert names == ["images", "targets"][: 1 + learn_labels]

    def loss(*values):
        return squared_error(functional_call(regression, dict(zip(names, values, strict=True)), x), y)

    assert torch.autograd.gradcheck(loss, tuple(regression.parameters()))


def test_a_kept_solution_follows_every_change_of_the_weights():
    model = net().eval().requires_grad_(False)
    x = torch.rand(2, 1, 4, 4)
    before = model(x)
    assert torch.equal(model(x), before)
    model.images.data[0] += 0.1  # without a new version of the tensor
    after = model(x)
    assert not torch.equal(after, before)
    fresh = net().eval().requires_grad_(False)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), after)
    assert torch.equal(copy.deepcopy(model)(x), after)
    torch.testing.assert_close(model.double()(x.double()).float(), after)
    with torch.inference_mode():
        model(x)
    x.requires_grad_()
    model.float()(x).sum().backward()
    assert x.grad.isfinite().all()


def test_images_that_are_not_finite_give_nan():
    regression = net()
    regression.images.data[0] = torch.nan
    assert regression(torch.rand(2, 1, 4, 4)).isnan().all()


def model_and_images() -> tuple[Classifier, torch.Tensor, torch.Tensor]:
    """Three classes that differ in the brightness of a quadrant."""
    torch.manual_seed(0)
    regression = KernelClassifier(1, 3, image_size=4, support=12)
    x, y = 0.3 * torch.rand(60, 1, 4, 4), torch.arange(60) % 3
    for label, (row, column) in enumerate([(0, 0), (0, 2), (2, 0)]):
        x[y == label, :, row : row + 2, column : column + 2] += 0.4
    regression.images.data.copy_(x[:12])
    return Classifier(regression, spec(3, 1), normalize=False), x, y


@pytest.mark.parametrize("attack", [PGD(0.1, step_size=0.025), Square(0.1, queries=50)], ids=lambda a: a.label)
def test_an_attack_never_increases_accuracy(attack):
    model, x, y = model_and_images()
    torch.manual_seed(0)
    wrong, wrong_attacked = (misclassified(model(images), y) for images in (x, attack(model, x, y)))
    assert not wrong.any()
    attack = PGD(0.3, step_size=0.1)
    assert misclassified(model(attack(model, x, y)), y).float().mean() > wrong_attacked.float().mean()


def test_sanity_checks_pass_and_the_search_keeps_its_solution():
    model, x, y = model_and_images()
    used = (gradients.zero_gradients, gradients.finite_differences, behaviour.batch_dependence)
    results = {result.name: result for result in run_checks(Context(model, x, y, 0.05, batch_size=60), used)}
    assert [name for name, result in results.items() if result.passed is not True] == []
    assert results["finite-differences"].values["precision"] == "float64"
    search = SearchModel(model.eval())
    torch.testing.assert_close(search(x), model(x))
    assert search.folded


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"support": 2}, "support must be at least 3, got 2"),
        ({"depth": -1}, "depth must be at least 0, got -1"),
        ({"ridge": 0.0}, "ridge must be positive and finite, got 0.0"),
        ({"image_size": 0}, "image_size must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        KernelClassifier(1, 3, **{"image_size": 4, "support": 12, **options})


def test_images_of_another_size_are_refused():
    with pytest.raises(
        ValueError, match=r"must be \(N, 1, 4, 4\) .* got \(2, 1, 8, 8\). Pass --model.net.image_size 8"
    ):
        net()(torch.rand(2, 1, 8, 8))
