"""Closed forms of the expected cost, reductions to cross-entropy, and the two steps of CSA."""

import copy

import pytest
import torch
from helpers.fakes import images, steady_classifier, tiny_classifier
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lightning_paf.attacks import PGD, Attack
from lightning_paf.objectives import CSA, CostSensitive, CostSensitiveAT
from lightning_paf.objectives.cost_sensitive import cost_matrix

ATTACK = PGD(0.1, step_size=0.05, steps=3)
X, Y = images()


def bound(objective, classes=10):
    objective.bind(tiny_classifier(classes))
    return objective


def logits(n=7, classes=10):
    torch.manual_seed(0)
    return 3 * torch.randn(n, classes, dtype=torch.float64), torch.arange(n) % classes


@given(st.integers(2, 6), st.floats(0, 20), st.data())
@settings(max_examples=10, deadline=None)
def test_the_matrix_has_the_cost_in_row_and_column_of_the_protected_class(classes, cost, data):
    p = data.draw(st.integers(0, classes - 1))
    matrix = cost_matrix(classes, p, cost)
    for i in range(classes):
        for j in range(classes):
            expected = 0.0 if i == j else cost if p in (i, j) else 1.0
            assert matrix[i, j].item() == pytest.approx(expected)


def test_expected_costs_have_their_closed_form():
    z, y = logits()
    objective = bound(CostSensitive(protected=2, cost=10))
    p = z.float().softmax(1)
    own = p[range(7), y]
    expected = torch.where(y == 2, 10 * (1 - own), 1 - own + 9 * p[:, 2])
    torch.testing.assert_close(objective.expected_cost(z, y), expected)
    torch.testing.assert_close(bound(CostSensitive(cost=1)).expected_cost(z, y), 1 - own)


def test_rows_are_predicted_classes_and_columns_true_ones():
    objective = bound(CostSensitive(matrix=[[0.0, 7.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), 3)
    predicted = 50 * torch.eye(3)
    assert objective.expected_cost(predicted, torch.tensor([1, 1, 1])).tolist() == pytest.approx([7, 0, 0])
    assert objective.expected_cost(predicted, torch.tensor([0, 0, 0])).tolist() == pytest.approx([0, 0, 0])
    half = torch.tensor([[0.5, 0.5, 0.0]]).expand(3, 3)
    assert objective.expected_cost(predicted, half).tolist() == pytest.approx([3.5, 0, 0])


@pytest.mark.parametrize("cls", [CostSensitive, CostSensitiveAT])
def test_with_weight_0_it_is_the_cross_entropy(cls):
    model, objective = steady_classifier(), bound(cls(weight=0))
    torch.manual_seed(0)
    seen = X if cls is CostSensitive else ATTACK(model, X, Y)
    torch.manual_seed(0)
    torch.testing.assert_close(objective(model, X, Y, ATTACK).loss, F.cross_entropy(model(seen), Y))


class Recording(Attack):
    """Records the loss to maximise, and brightens the images."""

    def perturb(self, forward, x, y, loss):
        self.found = loss(forward(x), y)
        return (x + self.radius).clamp_max(1)


def test_the_attack_maximises_the_cost_sensitive_loss():
    model, attack = steady_classifier(), Recording(0.1)
    objective = bound(CostSensitiveAT(protected=3))
    objective(model, X, Y, attack)
    z = copy.deepcopy(model).eval()(X)
    torch.testing.assert_close(attack.found, F.cross_entropy(z, Y, reduction="none") + objective.expected_cost(z, Y))


def test_csa_trains_on_clean_images_and_then_on_adversarial_images_of_the_updated_network():
    model, attack = steady_classifier(), Recording(0.1)
    objective = bound(CSA())
    assert objective.steps_per_batch == 2
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]) if module.training else None)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for number in range(2):
        objective.begin_step(number)
        optimizer.zero_grad()
        loss = objective(model, X, Y, attack).loss
        if number == 1:
            torch.testing.assert_close(attack.found, objective.losses(copy.deepcopy(model).eval()(X), Y))
        else:
            assert not hasattr(attack, "found")
        loss.backward()
        optimizer.step()
    clean, adversarial = seen
    assert torch.equal(clean, X)
    torch.testing.assert_close(adversarial, (X + 0.1).clamp_max(1))


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[0, 1], [1, 0], [1, 1]], r"must be square, got 3 rows of \[2\]"),
        ([[0, 1], [1]], "must be square"),
        ([], "must be square"),
        ([[0, -2], [1, 0]], "got entries from -2"),
        ([[1, 1], [1, 0]], r"the diagonal \[1.0, 0.0\]"),
    ],
)
def test_an_invalid_matrix_is_refused(matrix, message):
    with pytest.raises(ValueError, match=f"^matrix .*{message}"):
        CostSensitive(matrix=matrix)


def test_costs_must_fit_the_network():
    with pytest.raises(ValueError, match=r"matrix must be 10 x 10, .* got 2 x 2\. Pass 10 rows of 10 numbers"):
        bound(CostSensitive(matrix=[[0, 1], [1, 0]]))
    for protected in (10, -1):
        with pytest.raises(ValueError, match=rf"protected must be a class from 0 to 9, got {protected}\. Pass"):
            bound(CSA(protected=protected))


def test_costs_are_in_no_checkpoint():
    assert not bound(CostSensitive()).state_dict()
