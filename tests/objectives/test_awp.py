"""Adversarial weight perturbation: size and direction of the move, and exact restoration."""

import pytest
import torch
from helpers.every_objective import OBJECTIVES, build
from helpers.fakes import images, tiny_classifier
from torch.nn import functional as F

from lightning_paf.attacks import PGD, Recorded
from lightning_paf.objectives import AWP, TRADES, Natural, Objective, StepResult

ATTACK = PGD(0.1, step_size=0.05, steps=3)
X, Y = images()


def weights(*modules):
    return {f"{i}.{name}": p.detach().clone() for i, m in enumerate(modules) for name, p in m.named_parameters()}


def moved(objective, model):
    """Weights of model and objective during the backward pass."""
    result = objective(model, X, Y, ATTACK)
    during = weights(model, objective)
    result.loss.backward()
    objective.after_backward(model)
    return during


def test_weights_of_two_dimensions_move_up_the_loss_by_a_fraction_of_their_norm():
    model, reference = tiny_classifier().train(), tiny_classifier().train()
    before = weights(model)
    during = moved(AWP(Natural(), gamma=0.01), model)
    loss = F.cross_entropy(reference(X), Y)
    gradients = dict(zip(before, torch.autograd.grad(loss, list(reference.parameters())), strict=True))
    for name, value in before.items():
        step = during[name] - value
        if value.ndim < 2:
            assert not step.any(), name
            continue
        assert step.norm() / value.norm() == pytest.approx(0.01, rel=1e-3), name
        cosine = F.cosine_similarity(step.flatten(), gradients[name].flatten(), dim=0)
        assert cosine == pytest.approx(1, abs=1e-4), name


def test_the_gradient_is_that_at_the_moved_weights():
    model, there = tiny_classifier().train(), tiny_classifier().train()
    during = moved(AWP(Natural(), gamma=0.05), model)
    there.load_state_dict({name.removeprefix("0."): value for name, value in during.items()}, strict=False)
    F.cross_entropy(there(X), Y).backward()
    for mine, theirs in zip(model.parameters(), there.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


@pytest.mark.parametrize("objective", [AWP(TRADES(), gamma=0.0), AWP(TRADES(), warmup=0.5)], ids=["size", "warm-up"])
def test_with_size_0_or_during_the_warm_up_it_is_the_objective(objective):
    losses = []
    for one in (objective, TRADES()):
        model = tiny_classifier().train()
        one.on_epoch_start(0, 0.4)
        torch.manual_seed(0)
        losses.append(one(model, X, Y, ATTACK).loss)
    assert torch.equal(*losses)


def test_the_warm_up_ends():
    objective, model = AWP(Natural(), warmup=0.5), tiny_classifier().train()
    objective.on_epoch_start(5, 0.5)
    assert not torch.equal(moved(objective, model)["0.net.fc.weight"], model.net.fc.weight)


class Calls(Objective):
    """Records its training images."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []
        self.register_buffer("evaluations", torch.zeros(()))

    def forward(self, model, x, y, attack) -> StepResult:
        self.evaluations += 1
        found = [attack(model, x, y), attack(model, x, (y + 1) % 10)]
        self.seen += found
        logits = model(torch.cat(found))
        return StepResult(F.cross_entropy(logits, y.repeat(2)), logits)


def test_images_are_computed_once_and_statistics_updated_once():
    model, inner = tiny_classifier().train(), Calls()
    moved(AWP(inner), model)
    first, second, first_again, second_again = inner.seen
    assert torch.equal(first, first_again)
    assert torch.equal(second, second_again)
    assert not torch.equal(first, second)
    assert inner.evaluations == 1
    assert model.net.bn.num_batches_tracked == 1
    assert not torch.equal(model.net.bn.running_mean, tiny_classifier().net.bn.running_mean)


def test_a_recording_is_limited_to_its_calls():
    model = tiny_classifier()
    recorded = Recorded(ATTACK)
    found = recorded(model, X, Y)
    recorded.rewind()
    assert torch.equal(recorded(model, X, Y), found)
    with pytest.raises(RuntimeError, match=r"must be called at most 1 times .*, got one more"):
        recorded(model, X, Y)
    assert (recorded.radius, recorded.label) == (ATTACK.radius, "recorded")


def test_a_schedule_can_shrink_the_radius_to_zero():
    attack = PGD(0.1, step_size=0.05, steps=2)
    attack.eps = attack.step_size = 0.0
    model = tiny_classifier().train()
    assert torch.equal(Recorded(attack)(model, X, Y), X)
    assert torch.isfinite(AWP(TRADES())(model, X, Y, attack).loss)


@pytest.mark.parametrize("cls", [cls for cls in OBJECTIVES if cls is not AWP], ids=lambda cls: cls.__name__)
def test_around_every_objective_weights_move_and_are_restored_exactly(cls):
    objective, model = AWP(build(cls), gamma=0.05), tiny_classifier().train()
    objective.bind(model)
    objective.on_epoch_start(0, 0.5)
    objective.begin_step(0)
    before = weights(model, objective)
    during = moved(objective, model)
    for name, value in before.items():
        step, expected = float((during[name] - value).norm()), 0.05 * float(value.norm())
        assert step == pytest.approx(expected if value.ndim > 1 else 0, rel=1e-3), name
    after = weights(model, objective)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    parameters = [*model.parameters(), *objective.parameters()]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in parameters)


def test_in_bfloat16_the_second_pass_rounds_the_moved_weights():
    """Autocast caches rounded weights until its context ends."""
    model, there = tiny_classifier().train(), tiny_classifier().train()
    with torch.autocast("cpu", torch.bfloat16):
        result = AWP(Natural(), gamma=0.5)(model, X, Y, ATTACK)
    there.load_state_dict(model.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        expected = F.cross_entropy(there(X), Y)
    torch.testing.assert_close(result.loss, expected)
