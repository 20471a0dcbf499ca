"""Closed forms of the expected cost, reductions to cross-entropy, and the two steps of CSA."""

import copy

import pytest
import torch
from helpers.fakes import images, tiny_classifier
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lightning_paf.attacks import PGD, Attack
from lightning_paf.objectives import CSA, CostSensitive, CostSensitiveAT
from lightning_paf.objectives.cost_sensitive import cost_matrix

ATTACK = PGD(0.1, step_size=0.05, steps=3)


def still():
    model = tiny_classifier().train()
    model.net.bn.momentum = 0.0
    return model


def bound(objective):
    objective.bind(still())
    return objective


def logits(n=7, classes=10):
    torch.manual_seed(0)
    return 3 * torch.randn(n, classes, dtype=torch.float64), torch.arange(n) % classes


@given(st.integers(2, 6), st.floats(0, 20), st.data())
@settings(max_examples=20, deadline=None)
def test_the_matrix_is_symmetric_with_the_cost_in_row_and_column(classes, cost, data):
    p = data.draw(st.integers(0, classes - 1))
    matrix = cost_matrix(classes, p, cost)
    assert torch.equal(matrix, matrix.T)
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


def test_the_row_is_what_is_predicted_and_the_column_what_is_true():
    matrix = [[0.0, 7.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    objective = CostSensitive(matrix=matrix)
    objective.bind(tiny_classifier(num_classes=3))
    predicted = 50 * torch.eye(3)
    assert objective.expected_cost(predicted, torch.tensor([1, 1, 1])).tolist() == pytest.approx([7, 0, 0])
    assert objective.expected_cost(predicted, torch.tensor([0, 0, 0])).tolist() == pytest.approx([0, 0, 0])
    half = torch.tensor([[0.5, 0.5, 0.0]]).expand(3, 3)
    assert objective.expected_cost(predicted, half).tolist() == pytest.approx([3.5, 0, 0])


def test_the_gradient_is_that_of_finite_differences():
    z, y = logits(4)
    objective = bound(CostSensitive(protected=1, cost=5))
    objective.costs = objective.costs.double()

    def loss(z):
        return (z.softmax(1) * objective.costs.T[y]).sum(1)  # in double, of which the objective makes float

    assert torch.autograd.gradcheck(loss, z.requires_grad_())
    (exact,) = torch.autograd.grad(loss(z).sum(), z)
    (ours,) = torch.autograd.grad(objective.expected_cost(z, y).sum(), z)
    torch.testing.assert_close(ours, exact, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("cls", [CostSensitive, CostSensitiveAT])
def test_without_its_weight_it_is_the_cross_entropy(cls):
    model, (x, y) = still(), images()
    objective = bound(cls(weight=0))
    torch.manual_seed(0)
    seen = x if cls is CostSensitive else ATTACK(model, x, y)
    torch.manual_seed(0)
    torch.testing.assert_close(objective(model, x, y, ATTACK).loss, F.cross_entropy(model(seen), y))


def test_costs_scale_what_they_cost():
    z, y = logits()
    once, thrice = ([[0.0 if i == j else s * (i + 2 * j) for j in range(10)] for i in range(10)] for s in (1, 3))
    torch.testing.assert_close(
        3 * bound(CostSensitive(matrix=once)).expected_cost(z, y),
        bound(CostSensitive(matrix=thrice)).expected_cost(z, y),
    )


class Asked(Attack):
    """Remembers what it is asked for, and changes nothing."""

    def perturb(self, forward, x, y, loss):
        self.found = loss(forward(x), y)
        return (x + self.radius).clamp_max(1)


def test_the_attack_climbs_the_cost_sensitive_loss():
    model, (x, y), attack = still(), images(), Asked(0.1)
    objective = bound(CostSensitiveAT(protected=3))
    objective(model, x, y, attack)
    seen = copy.deepcopy(model).eval()(x)
    torch.testing.assert_close(
        attack.found, F.cross_entropy(seen, y, reduction="none") + objective.expected_cost(seen, y)
    )


def test_csa_trains_on_clean_images_and_then_on_what_fools_the_updated_network():
    model, (x, y), attack = still(), images(), Asked(0.1)
    objective = bound(CSA())
    assert objective.steps_per_batch == 2
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]) if module.training else None)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for number in range(2):
        objective.begin_step(number)
        optimizer.zero_grad()
        loss = objective(model, x, y, attack).loss
        if number == 1:
            updated = copy.deepcopy(model).eval()(x)
            torch.testing.assert_close(attack.found, objective.losses(updated, y))
        else:
            assert not hasattr(attack, "found")
        loss.backward()
        optimizer.step()
    clean, adversarial = seen
    assert torch.equal(clean, x)
    assert not torch.equal(adversarial, x)
    assert (adversarial - x).abs().max() <= 0.1 + 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cost": -1}, r"cost.*[= ]-1"),
        ({"weight": -0.5}, r"weight.*[= ]-0.5"),
        ({"cost": float("inf")}, r"cost.*[= ]inf"),
        ({"matrix": [[0, 1], [1, 0], [1, 1]]}, r"square, but .* has 3 rows"),
        ({"matrix": [[0, 1], [1]]}, "square"),
        ({"matrix": []}, "square"),
        ({"matrix": [[0, -2], [1, 0]]}, "entries from -2"),
        ({"matrix": [[1, 1], [1, 0]]}, "diagonal"),
    ],
)
def test_nonsense_is_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        CostSensitive(**options)


def test_costs_must_fit_the_network():
    with pytest.raises(ValueError, match=r"each of the 10 classes, but --model.objective.matrix has 2"):
        bound(CostSensitive(matrix=[[0, 1], [1, 0]]))
    for protected in (10, -1):
        with pytest.raises(ValueError, match=rf"0 to 9, but protected={protected}"):
            bound(CSA(protected=protected))


def test_costs_are_in_no_checkpoint():
    assert not bound(CostSensitive()).state_dict()
