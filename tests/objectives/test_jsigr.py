"""Jacobian norm and selective input gradient on functions whose answer is known."""

import pytest
import torch
from helpers.fakes import images, spec, tiny_classifier
from torch import nn
from torch.nn import functional as F

from lightning_paf.attacks import PGD
from lightning_paf.functional.saliency import most_salient, perturbation_saliency
from lightning_paf.nets import SmallConvNet
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.modes import frozen
from lightning_paf.objectives import TRADES, JacobianNorm, Natural, SelectiveInputGradient
from lightning_paf.objectives.jsigr import outside, squared_norm
from lightning_paf.speed.options import Speed
from lightning_paf.tasks.classification import RobustModule

ATTACK = PGD(0.1, step_size=0.05, steps=2)
X, Y = images()
terms = pytest.mark.parametrize("cls", [JacobianNorm, SelectiveInputGradient])


def linear() -> Classifier:
    torch.manual_seed(0)
    return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), spec(), normalize=False)


def weights(model, objective):
    """Gradients of one step."""
    torch.manual_seed(3)
    objective(model, X, Y, ATTACK).loss.backward()
    return [parameter.grad for parameter in model.parameters()]


# The Jacobian


def test_of_a_linear_function_the_norm_is_that_of_its_matrix():
    model = linear()
    expected = model.head.weight.norm() ** 2
    torch.testing.assert_close(JacobianNorm(projections=None).term(model, X, Y, ATTACK), expected)


def test_the_estimate_is_not_biased():
    model, draws = linear(), 4000
    x = X[:1].requires_grad_()
    directions = JacobianNorm(projections=draws).directions(logits := model(x))
    torch.testing.assert_close(directions.norm(dim=2), torch.ones(draws, 1))
    # The squared length of the product with each direction, times the number of classes.
    found = 10 * (directions[:, 0] @ model.head.weight.detach()).square().sum(1)
    error = (found.mean() - model.head.weight.detach().norm() ** 2).abs()
    assert error < 3 * found.std() / draws**0.5
    torch.testing.assert_close(squared_norm(logits, x, directions[:20]).detach(), found[:20].mean()[None])


def test_the_exact_norm_is_the_jacobians():
    model = tiny_classifier().eval()
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x).sum(0), X)  # (K, N, C, H, W)
    expected = jacobian.square().sum((0, 2, 3, 4)).mean()
    torch.testing.assert_close(JacobianNorm(projections=None).term(model, X, Y, ATTACK).detach(), expected)


def test_it_bounds_the_change_of_the_logits_to_first_order():
    model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.Softplus(), nn.Linear(32, 10)), spec())
    x = X.clone().requires_grad_()
    norm = squared_norm(logits := model(x), x, JacobianNorm(projections=None).directions(logits)).sqrt()
    for size in (1e-2, 1e-3):
        change = size * F.normalize(torch.randn(len(X), 192), dim=1).view_as(X)
        moved = (model(X + change) - logits).norm(dim=1)
        assert (moved <= norm * size + 10 * size**2).all()


def test_its_gradient_makes_the_jacobian_smaller():
    model, objective = tiny_classifier().train(), JacobianNorm(projections=None)
    before = objective.term(model, X, Y, ATTACK)
    before.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad
    assert objective.term(model, X, Y, ATTACK) < before


# The selective gradient


def test_masking_nothing_or_all():
    """A quantile of 1 is the input-gradient penalty of Ross and Doshi-Velez on log p_y, one of 0 is nothing."""
    model = tiny_classifier().eval()
    leaf = X.clone().requires_grad_()
    p = model(leaf).log_softmax(1)[torch.arange(len(Y)), Y]
    (gradient,) = torch.autograd.grad(p.sum(), leaf)
    full = gradient.flatten(1).square().sum(1).mean()
    torch.testing.assert_close(SelectiveInputGradient(quantile=1).term(model, X, Y, ATTACK).detach(), full)
    assert SelectiveInputGradient(quantile=0).term(model, X, Y, ATTACK) == 0
    assert 0 < SelectiveInputGradient(quantile=0.5).term(model, X, Y, ATTACK) < full


class Pixels(nn.Module):
    """A linear classifier that sees some pixels only."""

    def __init__(self, seen: list[tuple[int, int, float]]) -> None:
        super().__init__()
        self.fc = nn.Linear(len(seen), 2, bias=False)
        self.places = seen
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[gain for *_, gain in seen], [0.0] * len(seen)]))

    def forward(self, x):
        return self.fc(torch.stack([x[:, 0, row, column] for row, column, _ in self.places], 1))


def test_only_what_lies_outside_the_mask_counts():
    x, y = images(4, num_classes=2, channels=1)
    inside = Classifier(Pixels([(2, 2, 20.0)]), spec(2, 1), normalize=False).eval()
    assert SelectiveInputGradient().term(inside, x, y, ATTACK) == 0
    both = Classifier(Pixels([(2, 2, 20.0), (7, 7, 0.01)]), spec(2, 1), normalize=False).eval()
    with frozen(both):
        kept = most_salient(perturbation_saliency(both, x), 0.3)
    assert kept[:, 2, 2].all()
    assert not kept[:, 7, 7].any()
    wrong = 1 - both(x).softmax(1)[torch.arange(4), y]
    expected = (0.01 * wrong).square().mean()
    torch.testing.assert_close(SelectiveInputGradient().term(both, x, y, ATTACK), expected)


def test_matching_is_zero_where_gradient_and_saliency_agree():
    """All of both lies in one pixel, when the window is so narrow that it blurs nothing else."""
    x, y = images(4, num_classes=2, channels=1)
    model = Classifier(Pixels([(2, 2, 5.0)]), spec(2, 1), normalize=False).eval()
    match = SelectiveInputGradient(mode="match", window=1e-3)
    assert match.term(model, x, y, ATTACK).item() == pytest.approx(0, abs=1e-6)
    spread = Classifier(Pixels([(2, 2, 5.0), (5, 5, 5.0)]), spec(2, 1), normalize=False).eval()
    term = match.term(spread, x, y, ATTACK)
    assert 1e-4 < term < 2
    constant = Classifier(Pixels([(2, 2, 0.0)]), spec(2, 1), normalize=False).eval()
    assert match.term(constant, x, y, ATTACK) == 0


def test_no_gradient_flows_through_the_saliency():
    model = tiny_classifier().eval()
    SelectiveInputGradient().term(model, X, Y, ATTACK).backward()
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    with frozen(model):
        kept = most_salient(perturbation_saliency(model, X), 1 - 0.7)
    leaf = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(leaf), Y, reduction="sum"), leaf, create_graph=True)
    outside(gradient, kept).backward()
    expected = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(found) == len(expected) > 0
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other)


def test_the_term_of_some_examples_is_theirs():
    model = tiny_classifier().eval()
    some = SelectiveInputGradient(examples=3).term(model, X, Y, ATTACK)
    torch.testing.assert_close(some, SelectiveInputGradient().term(model, X[:3], Y[:3], ATTACK))


# Both


@terms
@pytest.mark.parametrize("inner", [Natural, TRADES])
def test_a_weight_of_zero_is_the_wrapped_objective_bit_for_bit(cls, inner):
    found = weights(tiny_classifier().train(), cls(inner(), weight=0))
    assert all(map(torch.equal, found, weights(tiny_classifier().train(), inner())))


def test_both_weights_zero_is_clean_training_and_one_of_them_the_other_term():
    neither = SelectiveInputGradient(JacobianNorm(weight=0), weight=0)
    plain = weights(tiny_classifier().train(), Natural())
    assert all(map(torch.equal, weights(tiny_classifier().train(), neither), plain))
    jacobian = weights(tiny_classifier().train(), SelectiveInputGradient(JacobianNorm(), weight=0))
    assert all(map(torch.equal, jacobian, weights(tiny_classifier().train(), JacobianNorm())))
    assert not all(map(torch.equal, jacobian, plain))


@terms
def test_the_term_is_added_with_its_weight(cls):
    result = cls(weight=0.3)(tiny_classifier().train(), X, Y, ATTACK)
    plain = F.cross_entropy(tiny_classifier().train()(X), Y)
    torch.testing.assert_close(result.loss, plain + 0.3 * result.logs[cls.name])
    assert result.logs[cls.name] > 0


@terms
def test_the_further_pass_moves_no_statistics(cls):
    model, plain = tiny_classifier().train(), tiny_classifier().train()
    cls()(model, X, Y, ATTACK)
    Natural()(plain, X, Y, ATTACK)
    for mine, other in zip(model.buffers(), plain.buffers(), strict=True):
        assert torch.equal(mine, other)


@terms
def test_a_compiled_network_is_refused(cls):
    with pytest.raises(ValueError, match=rf"compiled network has no second derivatives, but {cls.__name__}"):
        RobustModule(SmallConvNet(3), ATTACK, cls(), speed=Speed(compile=True))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: JacobianNorm(weight=-1), r"weight.*[= ]-1"),
        (lambda: JacobianNorm(projections=0), r"projections.*[= ]0"),
        (lambda: SelectiveInputGradient(mode="both"), "'both'"),
        (lambda: SelectiveInputGradient(quantile=1.5), r"quantile.*[= ]1.5"),
        (lambda: SelectiveInputGradient(grid=0), r"grid.*[= ]0"),
        (lambda: SelectiveInputGradient(examples=0), r"examples.*[= ]0"),
        (lambda: SelectiveInputGradient(window=0), r"window.*[= ]0"),
    ],
)
def test_nonsense_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
