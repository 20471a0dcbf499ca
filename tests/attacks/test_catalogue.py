"""Attack catalogue: special cases, closed forms on linear models, budgets and counts of queries."""

from copy import copy

import pytest
import torch
from helpers.digits_net import Recorder, digits, lambda_module
from helpers.fakes import images, tiny_classifier
from torch import nn

from lightning_paf.attacks import (
    FGSM,
    ILCM,
    JSMA,
    MIFGSM,
    OPT,
    ZOO,
    Boundary,
    CarliniWagner,
    DeepFool,
    EnsembleMIFGSM,
    SensitivityL2,
    SignOPT,
    UniversalPerturbation,
)
from lightning_paf.attacks.catalogue.decisions import Decisions, unit
from lightning_paf.functional import cross_entropy, geometry_of, margin
from lightning_paf.functional.predictions import predicted

DECIDERS = [
    Boundary(queries=130),
    OPT(queries=130, starts=3, directions=3),
    SignOPT(queries=130, starts=3, directions=20),
    ZOO(queries=130),
]
deciders = pytest.mark.parametrize("attack", DECIDERS, ids=lambda attack: attack.label)


def plane(size=20, n=3, classes=2):
    """A linear model, unbounded points at distances around 1 from its boundary, and these distances."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(size, classes)).requires_grad_(False)
    x = torch.randn(n, 1, 1, size)
    weight, logits = model[1].weight, model(x)
    y = logits.argmax(1)
    gaps = logits.gather(1, y[:, None]) - logits
    distances = gaps / (weight[y][:, None] - weight).norm(dim=2).clamp_min(1e-9)
    return model, x, y, distances.scatter(1, y[:, None], torch.inf).amin(1)


def test_mi_fgsm_of_one_step_is_fgsm_and_ignores_the_scale_of_the_logits():
    net, x, y = digits(8)
    for loss in (cross_entropy, margin):
        attack = MIFGSM(0.1, steps=1, momentum=0.0, loss=loss)
        assert torch.equal(attack(net, x, y), FGSM(0.1, loss=loss)(net, x, y))
    assert torch.equal(attack(net, x, y), attack(lambda_module(lambda z: 2 * net(z)), x, y))


def test_ensemble_of_the_model_itself_is_mi_fgsm_and_calls_the_attacked_model_once():
    net, x, y = digits(8)
    other, attacked = lambda_module(lambda z: -net(z)), Recorder(net)
    expected = MIFGSM(0.1)(net, x, y)
    torch.testing.assert_close(EnsembleMIFGSM([net, net], [1, 3], 0.1)(attacked, x, y), expected)
    assert attacked.seen == 1
    assert torch.equal(EnsembleMIFGSM([other, net], [0, 2], 0.1)(net, x, y), expected)
    assert not torch.equal(EnsembleMIFGSM([other, net], [2, 1], 0.1)(net, x, y), expected)


def test_surrogates_in_train_mode_get_two_images_and_keep_their_statistics():
    surrogate = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192), nn.Linear(192, 3))  # refuses a single image
    x, y = images(4, size=8, num_classes=3)
    before = surrogate[1].running_mean.clone()
    assert EnsembleMIFGSM([surrogate], mode="train")(surrogate, x, y).shape == x.shape
    assert torch.equal(surrogate[1].running_mean, before)


def test_surrogates_must_have_the_classes_of_the_model():
    net, x, y = digits(2)
    narrow = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    with pytest.raises(ValueError, match=r"the same number of classes, got \[10, 5, 10\]"):
        EnsembleMIFGSM([net, narrow])(net, x, y)
    with pytest.raises(ValueError, match=r"the same number of classes, got \[10, 3\]"):
        EnsembleMIFGSM([tiny_classifier(10), tiny_classifier(3)])


@pytest.mark.parametrize(("levels", "steps"), [(1, 2), (4, 5), (8, 10), (16, 20), (32, 36)])
def test_the_least_likely_class_attack_takes_the_steps_of_the_paper(levels, steps):
    assert ILCM(levels / 255).steps == steps


def test_with_two_classes_the_least_likely_one_is_the_other():
    model, x, y, _ = plane(n=6)
    towards = (model[1].weight[1 - y] - model[1].weight[y]).sign().view_as(x)
    x_adv = ILCM(0.5, steps=6, step_size=0.1, bounds=None)(model, x, y)
    torch.testing.assert_close(x_adv, x + 0.5 * towards)


@pytest.mark.parametrize("classes", [2, 6])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_deepfool_is_exact_on_a_linear_model_in_one_step(classes, norm):
    model, x, y, exact = plane(classes=classes, n=12)
    if norm == "linf":
        weight, logits = model[1].weight, model(x)
        gaps = logits.gather(1, y[:, None]) - logits
        sizes = (weight[y][:, None] - weight).abs().sum(2).clamp_min(1e-9)
        exact = (gaps / sizes).scatter(1, y[:, None], torch.inf).amin(1)
    found, distances = DeepFool(norm=norm, steps=1, bounds=None).nearest(model, x, y)
    torch.testing.assert_close(distances, 1.02 * (exact + 1e-4), rtol=1e-5, atol=1e-5)
    assert (model(found).argmax(1) != y).all()


@pytest.mark.parametrize("classes", [2, 6])
def test_the_sensitivity_attack_takes_equal_steps_along_the_normal_of_a_linear_model(classes):
    model, x, y, exact = plane(classes=classes, n=12)
    weight, logits = model[1].weight, model(x)
    lengths = (weight - weight[y][:, None]).norm(dim=2).clamp_min(1e-9)
    gaps = (logits.gather(1, y[:, None]) - logits) / lengths
    nearest = gaps.scatter(1, y[:, None], torch.inf).argmin(1)
    normals = (weight[nearest] - weight[y]) / lengths.gather(1, nearest[:, None])
    found, distances = SensitivityL2(kappa=1.0, steps=100, step_size=0.05, bounds=None).nearest(model, x, y)
    assert (distances >= exact * (1 - 1e-5)).all()
    assert (distances <= exact + 0.05 + 1e-5).all()
    torch.testing.assert_close((found - x).flatten(1), distances[:, None] * normals, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("target", [0, 3])
def test_the_sensitivity_attack_reaches_a_target(target):
    model, x, y, exact = plane(classes=6, n=12)
    attack = SensitivityL2(kappa=1.0, steps=400, step_size=0.05, bounds=None, target=target)
    found, distances = attack.nearest(model, x, y)
    own = y == target
    assert distances[own].isinf().all()
    assert torch.equal(found[own], x[own])
    assert (predicted(model(found[~own])) == target).all()
    assert (distances[~own] >= exact[~own] * (1 - 1e-5)).all()
    assert attack.describe()["target"] == target


def test_a_target_of_two_classes_is_the_nearest_boundary():
    model, x, y, _ = plane(classes=2, n=12)
    options = {"kappa": 1.0, "steps": 100, "step_size": 0.05, "bounds": None}
    for target in range(2):
        found = SensitivityL2(**options, target=target).nearest(model, x, y)[0]
        assert torch.equal(found[y != target], SensitivityL2(**options).nearest(model, x, y)[0][y != target])
    with pytest.raises(ValueError, match=r"target must be a class from 0 to 1, got 2\. Pass target=0"):
        SensitivityL2(target=2, bounds=None).nearest(model, x, y)


def test_the_sensitivity_attack_moves_boundaries_of_positive_logits_outwards():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).requires_grad_(False)
    model[1].weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0]]))
    model[1].bias.zero_()
    x, y = torch.tensor([0.6, 0.4, 0, 0]).view(1, 1, 2, 2), torch.tensor([0])
    x_adv = SensitivityL2(kappa=0.5, steps=1, step_size=0.9, bounds=None).nearest(model, x, y)[0]
    expected = torch.tensor([-1, 0.5, 0, 0]) / 1.25**0.5
    torch.testing.assert_close((x_adv - x).flatten(), 0.9 * expected)


def test_the_sensitivity_attack_leaves_images_without_gradient():
    flat = lambda_module(lambda x: 0 * x.flatten(1)[:, :3] + torch.tensor([1.0, 0, 0]))
    x, y = torch.full((2, 1, 2, 2), 0.5), torch.tensor([0, 1])
    found, distances = SensitivityL2().nearest(flat, x, y)
    assert torch.equal(found, x)
    assert distances.tolist() == [torch.inf, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"step_size": 0.0}, "step_size must be positive and finite, got 0.0"),
        ({"kappa": 0.0}, r"kappa must be in \(0, 1\], got 0.0"),
        ({"kappa": 1.5}, r"kappa must be in \(0, 1\], got 1.5"),
    ],
)
def test_settings_of_the_sensitivity_attack_outside_their_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SensitivityL2(**options)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_deepfool_leaves_an_exact_tie(norm):
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).requires_grad_(False)
    model[1].weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0]]))
    model[1].bias.zero_()
    x, y = torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.int64)
    found, distances = DeepFool(norm=norm).nearest(model, x, y)
    assert (model(found).argmax(1) == 1).all()
    assert (distances < 2e-4).all()


def test_carlini_wagner_reaches_the_boundary_of_a_linear_model():
    torch.manual_seed(4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(20, 2)).requires_grad_(False)
    x = 0.4 + 0.2 * torch.rand(4, 1, 4, 5)
    weight = model[1].weight[0] - model[1].weight[1]
    model[1].bias[0] = model[1].bias[1] - weight @ x.flatten(1).mean(0)
    y, exact = model(x).argmax(1), (model(x)[:, 0] - model(x)[:, 1]).abs() / weight.norm()
    _, distances = CarliniWagner(steps=200, searches=8, lr=0.01).nearest(model, x, y)
    assert (distances >= exact * (1 - 1e-5)).all()
    assert (distances <= 1.05 * exact + 1e-3).all()


def test_white_box_distances_are_ordered_on_digits():
    net, x, y = digits(10)
    _, theirs = CarliniWagner(steps=60, searches=4, initial_c=1, lr=0.1).nearest(net, x, y)
    found, deepfool = DeepFool().nearest(net, x, y)
    assert (net(found).argmax(1) != y)[deepfool.isfinite()].all()
    assert deepfool.isfinite().float().mean() > 0.9
    assert theirs.median() <= deepfool.median()


@pytest.mark.parametrize(
    ("attack", "queries", "factor"), [(OPT, 1000, 1.05), (SignOPT, 2000, 1.02), (Boundary, 600, 1.05)]
)
def test_decision_based_attacks_reach_the_distance_of_a_plane(attack, queries, factor):
    model, x, y, exact = plane(size=10)
    torch.manual_seed(0)
    _, distances = attack(queries=queries, bounds=None).nearest(model, x, y)
    assert (distances >= exact * (1 - 1e-4)).all()
    assert (distances <= factor * exact).all()


def test_sign_estimate_points_where_the_distance_grows():
    """On a plane with unit normal v, g(theta) = m / -(v . theta), whose ascent is along v, orthogonally to theta."""
    model, x, y, exact = plane(n=6)
    attack = SignOPT(queries=10_000, bounds=None)
    weight = model[1].weight
    normal = unit(weight[y] - weight[1 - y])  # towards the side where the label wins
    torch.manual_seed(0)
    theta = unit(-normal + 0.8 * unit(torch.randn_like(normal)))
    g = exact / -(normal * theta).sum(1)
    decisions = Decisions(model, x, y, attack.queries, None)
    gradient = attack.estimate(decisions, torch.arange(6), theta, g, torch.full((6,), 1e-2))
    across = normal - (normal * theta).sum(1, keepdim=True) * theta
    cosines = torch.cosine_similarity(gradient, across)
    assert (cosines > 0.75).all()


def test_mean_of_zoo_estimates_is_the_gradient():
    model, x, y, _ = plane(n=1)
    attack, times = ZOO(c=0.1, bounds=None, smoothing=1e-2), 5000
    delta = 0.1 * torch.ones_like(x)
    many, labels = x.expand(times, -1, -1, -1), y.expand(times)
    shifted = delta.expand_as(many)
    _, values, _ = attack._objective(model, many, labels, shifted)
    torch.manual_seed(0)
    estimates = attack.estimate(model, many, labels, shifted, values).flatten(1)
    weight = model[1].weight
    exact = (weight[y[0]] - weight[1 - y[0]]) + 2 * 0.1 * delta.flatten()
    error = estimates.std(0) / times**0.5
    assert ((estimates.mean(0) - exact).abs() < 4.5 * error + 5e-3).all()


@deciders
def test_queries_of_an_image_stay_within_the_budget(attack):
    net, x, y = digits(5)
    for image in range(5):
        recorder = Recorder(net)
        torch.manual_seed(image)
        attack.nearest(recorder, x[image : image + 1], y[image : image + 1])
        assert 100 <= recorder.seen <= 130


@deciders
def test_distances_are_those_of_the_images_and_misclassified_images_are_unchanged(attack):
    net, x, y = digits(6)
    y = y.clone()
    y[0] = (y[0] + 1) % 10
    torch.manual_seed(0)
    found, distances = attack.nearest(net, x, y)
    assert distances[0] == 0
    assert torch.equal(found[0], x[0])
    finite = distances.isfinite()
    torch.testing.assert_close((found - x)[finite].flatten(1).norm(dim=1), distances[finite])
    assert (net(found).argmax(1) != y)[finite].all()
    assert torch.equal(found[~finite], x[~finite])


@pytest.mark.parametrize("attack", [DeepFool(), DECIDERS[2]], ids=lambda attack: attack.label)
def test_results_beyond_eps_are_the_clean_images(attack):
    net, x, y = digits(10)
    torch.manual_seed(0)
    found, distances = attack.nearest(net, x, y)
    attack = copy(attack)
    attack.eps = float(distances.median())
    torch.manual_seed(0)
    x_adv, near = attack(net, x, y), distances < attack.radius
    assert near.any()
    assert not near.all()
    assert torch.equal(x_adv[near], found[near])
    assert torch.equal(x_adv[~near], x[~near])


def test_zoo_returns_adversarial_images():
    net, x, y = digits(10)
    torch.manual_seed(0)
    x_adv = ZOO(3.0, queries=600, lr=0.03)(net, x, y)
    fooled = net(x_adv).argmax(1) != y
    assert fooled.any()
    assert ((x_adv != x).flatten(1).any(1) == fooled).all()


def test_soft_label_counts_as_its_likeliest_class():
    net, x, y = digits(6)
    soft = 0.9 * nn.functional.one_hot(y, 10) + 0.01
    for attack in (DeepFool(), JSMA()):
        assert torch.equal(attack(net, x, soft), attack(net, x, y))


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.2), ("l2", 1.5)])
def test_universal_perturbation_fools_the_model_on_other_images(norm, eps, tmp_path):
    net, x, y = digits(160)
    torch.manual_seed(0)
    attack = UniversalPerturbation(eps, norm=norm, passes=2, steps=5, rate=0.9)
    fitted = attack.fitted(net, x[:30], y[:30])
    assert attack.perturbation is None
    assert geometry_of(norm).size(fitted.perturbation[None]) <= eps
    clean, labels = x[60:], y[60:]
    x_adv = fitted(net, clean, labels)
    inside = ((x_adv > 0) & (x_adv < 1)).all(0)
    torch.testing.assert_close((x_adv - clean)[:, inside], fitted.perturbation[inside].expand(100, -1))
    noise = eps * torch.randn_like(x[:1]).sign() if norm == "linf" else eps * x.new_ones(1, 1, 8, 8) / 8
    wrong, by_noise = ((net(z.clamp(0, 1)).argmax(1) != labels).float().mean() for z in (x_adv, clean + noise))
    assert wrong > by_noise + 0.1
    torch.save(fitted.perturbation, tmp_path / "delta.pt")
    again = UniversalPerturbation(eps, norm=norm, perturbation=tmp_path / "delta.pt")
    assert torch.equal(again(net, x[:5], y[:5]), fitted(net, x[:5], y[:5]))
    assert again.describe()["perturbation"] == fitted.describe()["perturbation"] is not None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.full((1, 8, 8), 0.5), r"linf size of the perturbation must be at most eps=0\.4, got 0\.5"),
        ({"delta": 1}, "must hold a tensor"),
        (None, "cannot be read"),
    ],
)
def test_files_without_a_valid_perturbation_are_rejected(content, message, tmp_path):
    if content is not None:
        torch.save(content, tmp_path / "delta.pt")
    with pytest.raises(ValueError, match=message):
        UniversalPerturbation(0.4, perturbation=tmp_path / "delta.pt")


def test_universal_perturbation_needs_images_of_its_shape():
    net, x, y = digits(2)
    attack = UniversalPerturbation(0.4, passes=1, steps=1).fitted(net, x, y)
    with pytest.raises(ValueError, match=r"shape \(1, 8, 8\) of the perturbation, got \(1, 4, 4\)"):
        attack(nn.Flatten(), x[:, :, :4, :4], y)
    with pytest.raises(ValueError, match="at least one image"):
        attack.fitted(net, x[:0], y[:0])


@pytest.mark.parametrize("increase", [True, False])
def test_jsma_changes_at_most_its_entries_and_all_in_one_direction(increase):
    net, x, y = digits(30)
    x_adv = JSMA(8, increase=increase)(net, x, y)
    changed = (x_adv != x).flatten(1)
    assert (changed.sum(1) <= 8).all()
    assert (x_adv[x_adv != x] == float(increase)).all()
    fooled = net(x_adv).argmax(1) != y
    assert fooled.float().mean() > 0.2
    assert (changed.sum(1) > 0)[fooled].all()
