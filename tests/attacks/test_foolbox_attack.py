"""The adapter of foolbox, compared with closed forms; skipped if foolbox is not installed."""

import pytest
import torch
from helpers.digits_net import digits, lambda_module
from torch import nn

from lightning_paf.attacks import DeepFool, FoolboxAttack

pytest.importorskip("foolbox")


def plane(norm):
    """A linear model, grey images far from black and white, and their distances from the boundary."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).requires_grad_(False)
    x = 0.4 + 0.2 * torch.rand(3, 1, 4, 4)
    weight = model[1].weight[0] - model[1].weight[1]
    model[1].bias[0] = model[1].bias[1] - weight @ x.flatten(1).mean(0)
    gaps = (model(x)[:, 0] - model(x)[:, 1]).abs()
    return model, x, model(x).argmax(1), gaps / weight.norm(p={"l2": 2, "linf": 1}[norm])


@pytest.mark.parametrize(
    ("name", "norm", "options", "factor"),
    [
        ("HopSkipJumpAttack", "l2", {"steps": 15, "initial_gradient_eval_steps": 50}, 1.1),
        ("HopSkipJumpAttack", "linf", {"steps": 15, "initial_gradient_eval_steps": 50, "constraint": "linf"}, 1.5),
        ("DDNAttack", "l2", {"steps": 100, "init_epsilon": 0.1}, 1.1),
        ("LInfFMNAttack", "linf", {"steps": 100}, 1.1),
        ("L2DeepFoolAttack", "l2", {}, 1.03),
    ],
)
def test_distances_to_a_plane(name, norm, options, factor):
    model, x, y, exact = plane(norm)
    torch.manual_seed(0)
    found, distances = FoolboxAttack(name, norm=norm, options=options).nearest(model, x, y)
    assert (model(found).argmax(1) != y).all()
    assert (distances >= exact * (1 - 1e-3)).all()
    assert (distances <= factor * exact + 1e-3).all()


def test_deepfool_of_foolbox_and_ours_find_the_same_distances():
    net, x, y = digits(30)
    _, theirs = FoolboxAttack("L2DeepFoolAttack").nearest(net, x, y)
    _, ours = DeepFool().nearest(net, x, y)
    assert float(ours.median()) == pytest.approx(float(theirs.median()), rel=0.1)


def test_image_without_a_start_is_unchanged_and_the_others_are_attacked():
    def forward(z):  # foolbox finds no start for the second image
        light = (z.flatten(1).mean(1) > 0.9).float()
        return torch.stack((light, 1 - light), dim=1)

    x = torch.stack((torch.ones(1, 4, 4), torch.zeros(1, 4, 4)))
    torch.manual_seed(0)
    attack = FoolboxAttack(options={"steps": 3, "initial_gradient_eval_steps": 10})
    found, distances = attack.nearest(lambda_module(forward), x, torch.tensor([0, 1]))
    assert distances[0].isfinite()
    assert distances[1].isinf()
    assert torch.equal(found[1], x[1])


def test_unknown_attacks_and_norms_are_rejected():
    for name in ("NoAttack", "LinfPGD"):
        with pytest.raises(ValueError, match=f"must be a minimal-norm attack of foolbox, got {name}"):
            FoolboxAttack(name)
    with pytest.raises(ValueError, match="norm must be l2 for DDNAttack, got linf"):
        FoolboxAttack("DDNAttack", norm="linf")


def test_options_and_release_are_described():
    described = FoolboxAttack("DDNAttack", options={"steps": 7}).describe()
    assert (described["name"], described["options"]) == ("DDNAttack", {"steps": "7"})
    assert described["package"].startswith("foolbox 3")
