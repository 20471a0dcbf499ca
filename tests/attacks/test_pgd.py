"""PGD: steps by hand, starts, projections, and Danskin's theorem."""

import warnings
from fractions import Fraction

import pytest
import torch
from helpers.digits_net import Recorder
from torch import nn

from lightning_paf.attacks import PGD, base
from lightning_paf.functional import cross_entropy, geometry, geometry_of, kl_divergence


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))


def batch(n=8):
    return torch.rand(n, 1, 4, 4), torch.randint(4, (n,))


def test_one_step_by_hand():
    model, (x, y) = network(), batch()
    images = x.clone().requires_grad_()
    cross_entropy(model(images), y).sum().backward()
    expected = (x + 0.01 * images.grad.sign()).clamp(0, 1)
    torch.testing.assert_close(PGD(0.01, steps=1, step_size=0.01, start="none")(model, x, y), expected)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_short_path_for_finite_gradients_changes_nothing(monkeypatch, norm):
    model, (x, y) = network(), batch()

    def attacked():
        torch.manual_seed(3)
        return PGD(0.2, norm=norm, step_size=0.1, best=True)(model, x, y)

    short = attacked()
    for module in (base, geometry):
        monkeypatch.setattr(module, "known_finite", lambda *values: False)
    assert torch.equal(attacked(), short)


def test_number_of_gradients():
    model, (x, y) = network(), batch()
    for best, calls in ((False, 7), (True, 8)):
        recorder = Recorder(model)
        PGD(steps=7, best=best)(model, x, y, forward=recorder)
        assert len(recorder.images) == calls


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_starts(norm):
    model, (x, y) = network(), batch()
    first = {}
    for start in ("uniform", "gaussian", "none"):
        recorder = Recorder(model)
        PGD(0.5, step_size=0.1, norm=norm, start=start)(model, x, y, forward=recorder)
        first[start] = geometry_of(norm).size(recorder.images[0] - x)
        assert recorder.images[0].min() >= 0
        assert recorder.images[0].max() <= 1
    assert (first["none"] == 0).all()
    assert (first["gaussian"] > 0).all()
    assert (first["gaussian"] < 0.05).all()
    assert (first["uniform"] > 0.1).all()
    assert (first["uniform"] <= 0.5).all()


def test_unclamped_start_leaves_the_pixel_range_and_the_result_does_not():
    model, (x, y) = network(), batch()
    x = x.round()
    for best in (False, True):
        recorder = Recorder(model)
        x_adv = PGD(0.1, step_size=0.05, clamp_start=False, best=best)(model, x, y, forward=recorder)
        assert recorder.images[0].max() > 1
        assert all(images.max() <= 1 for images in recorder.images[1:])
        assert x_adv.max() <= 1


def test_unclamped_start_is_never_the_best():
    model, (x, y) = network(), batch()

    def outside(images, _):
        return (images - images.clamp(0, 1)).abs().flatten(1).sum(1)

    attack = PGD(0.1, step_size=0.05, clamp_start=False, best=True)
    x_adv = attack(model, x.round(), y, forward=lambda images: images, loss=outside)
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


def test_best_is_the_largest_loss_of_all_iterates():
    model, (x, y) = network(), batch()
    recorder = Recorder(model)
    x_adv = PGD(0.3, step_size=0.3, steps=5, best=True)(model, x, y, forward=recorder)
    losses = torch.stack([cross_entropy(model(images), y) for images in recorder.images]).detach()
    assert len(losses) == 6  # start, four in between, the last
    torch.testing.assert_close(cross_entropy(model(x_adv), y).detach(), losses.amax(0))
    assert (losses.argmax(0) < 5).any(), "steps of this size must overshoot somewhere, or nothing is tested"


def test_the_gradient_at_the_worst_image_is_that_of_the_worst_case():
    """Danskin's theorem, where the inner problem is a concave quadratic: w (x + d) - 2 |d|^2, largest at d = w / 4."""
    x, w = torch.full((1, 1, 1, 2), 0.5), torch.tensor([0.4, -0.3], dtype=torch.float64)
    x = x.double()

    def worst(weight):
        """Value and gradient by the weight, at the result of the attack."""
        weight = weight.clone().requires_grad_()

        def forward(images):
            return (weight * images.flatten(1) - 2 * (images - x).flatten(1).square()).sum(1, keepdim=True)

        attack = PGD(0.5, norm="l2", step_size=0.002, steps=100, start="none", best=True)
        found = attack(nn.Identity(), x, torch.zeros(1), forward=forward, loss=lambda value, _: value[:, 0])
        value = forward(found).sum()
        return value.item(), torch.autograd.grad(value, weight)[0]

    value, gradient = worst(w)
    assert value == pytest.approx(float(0.5 * w.sum() + w.square().sum() / 8), abs=1e-5)
    for axis in range(2):
        step = 0.05 * torch.eye(2, dtype=torch.float64)[axis]
        difference = (worst(w + step)[0] - worst(w - step)[0]) / 0.1
        assert gradient[axis].item() == pytest.approx(difference, abs=2e-3)
        assert gradient[axis].item() == pytest.approx(0.5 + w[axis].item() / 4, abs=2e-3)


def test_result_does_not_depend_on_the_rest_of_the_batch():
    model, (x, y) = network(), batch()
    attack = PGD(start="none")
    torch.testing.assert_close(attack(model, x, y)[:3], attack(model, x[:3], y[:3]))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_zero_gradient_changes_nothing(norm):
    model, (x, y) = network(), batch()
    dead = PGD(0.5, norm=norm, step_size=0.1, start="none")(model, x, y, loss=lambda z, _: 0 * z.sum(1))
    assert torch.equal(dead, x)


def test_trades_inner_problem_raises_the_divergence():
    # At the clean image the gradient of the divergence is zero; the Gaussian start leaves it.
    model, (x, _) = network(), batch()
    p = model(x).softmax(1).detach()
    still, moved = (
        PGD(0.3, step_size=0.1, start=start)(model, x, p, loss=kl_divergence) for start in ("none", "gaussian")
    )
    assert kl_divergence(model(moved), p).min() > 1e-3
    assert kl_divergence(model(moved), p).mean() > kl_divergence(model(still), p).mean()


def test_soft_labels():
    model, (x, _) = network(), batch()
    soft = torch.softmax(torch.randn(8, 4), 1)
    assert (cross_entropy(model(PGD()(model, x, soft)), soft) > cross_entropy(model(x), soft)).all()


def test_train_mode_attacks_batch_statistics_and_protects_the_running_ones():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 4))
    model[1].running_mean.fill_(5.0)
    x, y = batch()
    modes = []
    model[1].register_forward_hook(lambda module, *_: modes.append(module.training))
    in_train, in_eval = (PGD(start="none", mode=mode)(model, x, y) for mode in ("train", "eval"))
    assert modes == [True] * 10 + [False] * 10
    assert not torch.equal(in_train, in_eval)
    assert (model[1].running_mean == 5).all()
    assert model[1].num_batches_tracked == 0
    assert model.training


def test_steps_that_cannot_cross_the_ball_raise_one_warning():
    with pytest.warns(UserWarning, match="3 steps of 2/255 are shorter than eps=8/255") as caught:
        attack = PGD(steps=3)
    assert len(caught) == 1
    model, (x, y) = network(), batch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attack(model, x, y)
        PGD(steps=4)


def test_targeted_attack_is_a_loss():
    model, (x, _) = network(), batch()
    target = (model(x).argmax(1) + 1) % 4
    attack = PGD(0.5, step_size=0.1)
    x_adv = attack(model, x, target, loss=lambda logits, labels: -cross_entropy(logits, labels))
    assert (model(x_adv).argmax(1) == target).all()


def test_the_warning_of_few_steps_names_the_attack():
    class Short(PGD):
        pass

    with pytest.warns(UserWarning, match="^Short cannot cross the ball: 1 steps of 1/255 are shorter than eps=8/255"):
        Short(Fraction(8, 255), steps=1, step_size=Fraction(1, 255))


def test_steps_longer_than_the_ball_are_reported():
    with pytest.warns(UserWarning, match="^PGD: steps of 5/255 are longer than the diameter of the ball, 2 . 2/255"):
        PGD(Fraction(2, 255), steps=3, step_size=Fraction(5, 255))
