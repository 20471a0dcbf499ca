"""Soundness of bounds: no sampled or attacked point leaves them."""

import math

import pytest
import torch
from torch import nn

from lightning_paf.evaluation.certificates import (
    IBP,
    AlphaCrown,
    Crown,
    CrownIBP,
    certify,
    interval_bounds,
    layer_bounds,
)
from lightning_paf.nets import CifarResNet, LeNet, SmallConvNet
from lightning_paf.nn.activations import (
    ELU,
    PELU,
    PReLU,
    PReLUPlus,
    PSiLU,
    PSoftplus,
    PSSiLU,
    ReBLU,
    ReLU,
    SiLU,
    Softplus,
    Tanh,
)
from lightning_paf.nn.bounds.curve import curve_of
from lightning_paf.nn.bounds.interval import Interval, rounding_unit
from lightning_paf.nn.bounds.lines import lines, value_range
from lightning_paf.nn.bounds.network import Network, UnboundedError
from lightning_paf.nn.bounds.region import Box, region_of
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.swap import swap_activations
from lightning_paf.specs import dataset_spec

ACTIVATIONS = [
    ReLU, ELU, SiLU, Softplus, Tanh, nn.Sigmoid,
    *(lambda a=a: PReLU(a) for a in (0.25, 2.0, -0.5)), lambda: PReLUPlus(-1.5),
    *(lambda a=a: PELU(a) for a in (0.5, 3.0, -1.0)), *(lambda a=a: ReBLU(a) for a in (0.7, -2.0)),
    *(lambda a=a: PSoftplus(a) for a in (0.3, 20.0)), *(lambda a=a: PSiLU(a) for a in (0.1, 30.0)),
    *(lambda a=a, b=b: PSSiLU(a, b) for a in (0.5, 4.0) for b in (0.1, 0.9)),
]  # fmt: skip
UNIT = rounding_unit(torch.float32)


def intervals(count=4000):
    """Random, wide, narrow and empty intervals, and those that end at 0."""
    low = torch.randn(count) * 10 ** torch.empty(count).uniform_(-4, 1.5)
    high = low + 10 ** torch.empty(count).uniform_(-8, 1.7)
    low[:50], high[50:100], high[100:150] = 0.0, 0.0, low[100:150]
    return Interval(torch.minimum(low, high)[None], torch.maximum(low, high)[None])


@pytest.mark.parametrize("make", ACTIVATIONS)
def test_lines_and_ranges_contain_the_function(make):
    torch.manual_seed(0)
    module, interval = make(), intervals()
    curve = curve_of(module, 2)
    found, (least, most) = lines(curve, interval, UNIT), value_range(curve, interval, UNIT)
    for fraction in torch.linspace(0, 1, 201):
        x = torch.lerp(*interval, fraction.item()).clamp(*interval)
        y = module(x).detach()
        assert (found.lower_slope * x + found.lower <= y).all()
        assert (found.upper_slope * x + found.upper >= y).all()
        assert (least <= y).all()
        assert (most >= y).all()


@pytest.mark.parametrize("make", ACTIVATIONS)
def test_bounds_are_narrow_where_the_interval_is(make):
    low = torch.linspace(-5, 5, 1001)[None].double()
    interval = Interval(low, low + 1e-3)
    bounds = lines(curve_of(make(), 2), interval, 0.0)
    gap = bounds.upper - bounds.lower + (bounds.upper_slope - bounds.lower_slope) * (low + 5e-4)
    kink = (low < 0) & (low + 1e-3 > 0)
    assert gap[~kink].max() < 1e-5


def test_lines_of_relu_are_those_of_crown():
    interval = Interval(torch.tensor([[-1.0, -3.0, 1.0, -2.0]]), torch.tensor([[3.0, 1.0, 2.0, -1.0]]))
    found = lines(curve_of(ReLU(), 2), interval, 0.0)
    assert torch.allclose(found.upper_slope, torch.tensor([[0.75, 0.25, 1.0, 0.0]]))
    assert torch.allclose(found.upper, torch.tensor([[0.75, 0.75, 0.0, 0.0]]))
    assert torch.allclose(found.lower_slope, torch.tensor([[1.0, 0.0, 1.0, 0.0]]))
    assert torch.allclose(found.lower, torch.zeros(1, 4))


def test_inflection_points_are_zeros_of_the_second_derivative():
    for make in (lambda: PSiLU(1.7), lambda: PSSiLU(0.6, 0.2)):
        curve = curve_of(make(), 1).to(torch.zeros((), dtype=torch.float64))
        for point in curve.inflections(torch.zeros(1, dtype=torch.float64)):
            x = point.detach().clone().requires_grad_()
            (second,) = torch.autograd.grad(curve.slope(x).sum(), x)
            assert abs(float(second)) < 1e-12


def bound_of(model, region, weights, method=Crown):
    with torch.no_grad():
        return method()(Network(model, region.interval().lower[:1]), region, weights)


def classifier(make=None, net=None, seed=0):
    torch.manual_seed(seed)
    net = net or SmallConvNet(width=4)
    if make is not None:
        swap_activations(net, make)
    spec = dataset_spec("digits")
    return Classifier(net, spec).eval()


def margins(y):
    """Weights (9, N, 10) of the logit of the label minus each other one."""
    eye = torch.eye(10)
    return torch.stack([eye[y] - eye[(y + k) % 10] for k in range(1, 10)])


def attacked(model, x, weights, eps, norm, steps=10):
    """Least weighted sums (K, N) that PGD and random points of the ball find."""
    least = torch.full((len(weights), len(x)), math.inf)
    for step in range(2 * steps):
        if step % steps == 0:
            delta = (torch.rand(len(weights), *x.shape) * 2 - 1) * eps
        if norm == "l2":
            delta = delta * (eps / delta.flatten(2).norm(dim=2).clamp_min(eps))[..., None, None, None]
        points = (x + delta).clamp(0, 1).detach().requires_grad_()
        sums = (weights * model(points.flatten(0, 1)).view(*points.shape[:2], -1)).sum(2)
        least = torch.minimum(least, sums.detach())
        (gradient,) = torch.autograd.grad(sums.sum(), points)
        length = gradient.flatten(2).norm(dim=2).clamp_min(1e-9)[..., None, None, None]
        step_of = gradient.sign() if norm == "linf" else gradient / length
        delta = points.detach() - x - eps / 4 * step_of
        if norm == "linf":
            delta = delta.clamp(-eps, eps)
    return least


def tiny(make):
    """A network of two activations, on images of 4 x 4 pixels."""
    torch.manual_seed(2)
    layers = nn.Sequential(nn.Conv2d(1, 3, 3), make(), nn.Flatten(), nn.Linear(12, 8), make(), nn.Linear(8, 10))
    return layers.eval()


@pytest.mark.parametrize("make", ACTIVATIONS)
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("l2", 0.2)])
def test_no_attack_leaves_the_bounds(make, norm, eps):
    model, x, y = tiny(make), torch.rand(3, 1, 4, 4).round(decimals=1), torch.tensor([0, 5, 9])
    region = region_of(norm, x, eps)
    least = attacked(model, x, margins(y), eps, norm)
    methods = (IBP, CrownIBP, Crown, lambda: AlphaCrown(5))
    found = [bound_of(model, region, margins(y), method) for method in methods]
    assert all((bound <= least).all() for bound in found)
    ibp, _, crown, alpha = found
    assert (alpha >= crown).all()
    assert alpha.mean() > crown.mean() > ibp.mean()


def test_residual_networks_with_batch_norm():
    model = classifier(lambda: PSSiLU(1.0, 0.3), CifarResNet(in_channels=1, width=2))
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        (
            norm.running_mean.normal_(),
            norm.running_var.uniform_(0.5, 2),
            norm.weight.data.normal_(),
            norm.bias.data.normal_(),
        )
    x, y, eps = torch.rand(1, 1, 4, 4), torch.tensor([1]), 1e-3
    bound = bound_of(model, region_of("linf", x, eps), margins(y), CrownIBP)
    assert (bound <= attacked(model, x, margins(y), eps, "linf", 5)).all()


def test_linear_networks_are_exact():
    torch.manual_seed(1)
    layers = nn.Sequential(nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 10))
    model, x = classifier(net=layers), torch.rand(5, 1, 8, 8) * 0.2 + 0.4
    weights, zero = torch.randn(7, 5, 10), torch.zeros(5, 1, 8, 8, requires_grad=True)
    gradient = torch.stack([torch.autograd.grad((w * model(zero)).sum(), zero)[0] for w in weights])
    value = (weights * model(x)).sum(2).detach()
    linf = value - 0.1 * gradient.flatten(2).abs().sum(2)
    l2 = value - 0.1 * gradient.flatten(2).norm(dim=2)
    for norm, exact in (("linf", linf), ("l2", l2)):
        assert torch.allclose(bound_of(model, region_of(norm, x, 0.1), weights).float(), exact, atol=1e-3)


def test_one_relu_is_exact():
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2))
    with torch.no_grad():
        model[1].weight.fill_(2.0), model[1].bias.fill_(-1.0), model[3].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        model[3].bias.zero_()
    x = torch.full((1, 1, 1, 1), 0.6)  # 2 x - 1 is in [-0.2, 0.6]
    bound = bound_of(model, region_of("linf", x, 0.2), torch.eye(2).view(2, 1, 2))
    # The lower line has slope 1 and ends at -0.2; the upper one is the chord, which is exact at the end 0.6.
    assert torch.allclose(bound.float(), torch.tensor([[-0.2], [-0.6]]), atol=1e-4)


def test_bounds_of_layers_contain_their_values_and_those_of_float64():
    model = classifier()
    x, inputs = torch.rand(2, 1, 8, 8), []
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach()))
    low, high = (x - 0.05).clamp(0, 1), (x + 0.05).clamp(0, 1)
    with pytest.raises(UnboundedError, match="hooks of ReLU"):
        layer_bounds(model, low, high)
    bare = classifier()
    found, wide = layer_bounds(bare, low, high), interval_bounds(bare, low, high)
    for _ in range(50):
        inputs.clear()
        model(torch.lerp(low, high, torch.rand_like(x).round()))
        for value, tight, loose in zip(inputs, found, wide, strict=True):
            assert (tight.lower <= value).all()
            assert (value <= tight.upper).all()
            assert (loose.lower <= tight.lower).all()
            assert (tight.upper <= loose.upper).all()
    exact = interval_bounds(classifier().double(), low.double(), high.double())
    assert all((a.lower <= b.lower).all() and (b.upper <= a.upper).all() for a, b in zip(wide, exact, strict=True))


def test_layers_without_bounds_are_named():
    model = Classifier(LeNet(in_channels=3), dataset_spec("cifar10")).eval()
    with pytest.raises(UnboundedError, match="max_pool2d"):
        layer_bounds(model, torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32))


class Odd(nn.Module):
    """A linear classifier of features that a function computes from images and a convolution."""

    def __init__(self, features):
        super().__init__()
        self.conv, self.fc, self.relu = nn.Conv2d(1, 2, 3, padding=1), nn.Linear(128, 3), nn.ReLU(inplace=True)
        self.features = features

    def forward(self, x):
        return self.fc(self.features(self, x).flatten(1))


def in_place_module(net, x):
    y = net.conv(x)
    return net.relu(y) + y


def in_place_function(net, x):
    y = net.conv(x)
    return nn.functional.relu(y, True) + y


def in_place_on_a_view(net, x):
    y = net.conv(x)
    return net.relu(y.view(-1, 2, 8, 8)) + y


def in_place_sum(net, x):
    y = net.conv(x)
    z = y
    z += 1.0
    return z + y


@pytest.mark.parametrize(
    ("features", "reason"),
    [
        (in_place_module, "relu, which changes in place a tensor that another layer reads"),
        (in_place_function, "changes in place a tensor"),
        (in_place_on_a_view, "changes in place a tensor"),
        (in_place_sum, "computes other logits than the model"),
        (lambda net, x: net.conv(net.relu(x)), "changes in place a tensor"),
        (lambda net, x: net.conv(x + 5 * torch.randn(x.shape)), "computes other logits than the model"),
        (lambda net, x: net.conv(x) * x.shape[0], "computes other logits than the model"),
        (lambda net, x: net.conv((4 * x).to(torch.int32).to(torch.float32)), "the method to"),
        (lambda net, x: net.conv(x) + net.conv(x).mean((2, 3), keepdim=True), "the function add"),
        (lambda net, x: net.conv(x).mean((2, 3), keepdim=True) + torch.zeros(x.shape), "the function add"),
        (lambda net, x: net.conv(x) if x.mean() > 0.5 else net.conv(-x), "Odd, which torch.fx cannot trace"),
    ],
)
def test_computations_that_the_graph_does_not_show_are_refused(features, reason):
    with pytest.raises(UnboundedError, match=reason):
        certify(Odd(features).eval(), torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 2]), 0.01)


def test_the_module_that_cannot_be_traced_is_named():
    inner = Odd(lambda net, x: net.conv(x) if x.mean() > 0.5 else net.conv(-x))
    with pytest.raises(UnboundedError, match=r"Odd \(0\), which torch.fx cannot trace"):
        certify(nn.Sequential(inner), torch.rand(1, 1, 8, 8), torch.tensor([0]), 0.01)


def test_networks_that_change_only_their_own_tensors_in_place_have_bounds():
    def features(net, x):
        y = net.relu(net.conv(x))
        y += 0.5
        return net.relu(y.flatten(1))

    model, x = Odd(features).eval(), torch.rand(3, 1, 8, 8)
    assert certify(model, x, model(x).argmax(1), 1e-6).certified.all()


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_named_paddings_and_slopes_of_channels_have_bounds(padding):
    convolution = nn.Conv2d(1, 4, (3, 5), padding=padding, dilation=(2, 1))
    model = nn.Sequential(convolution, nn.PReLU(4, init=0.3), nn.Flatten(), nn.LazyLinear(3)).eval()
    x = torch.rand(5, 1, 8, 8)
    two = model(x).topk(2).values
    found = certify(model, x, model(x).argmax(1), 1e-7).margins
    assert torch.allclose(found.float(), two[:, 0] - two[:, 1], atol=1e-4)


def test_a_single_logit_is_refused():
    with pytest.raises(ValueError, match="must have at least 2 logits for margins, got 1"):
        certify(nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), torch.rand(1, 1, 8, 8), torch.tensor([0]), 0.1)


def test_radius_and_norm_are_checked():
    x = torch.rand(1, 1, 8, 8)
    with pytest.raises(ValueError, match="eps must be above 0 and finite, got 0"):
        region_of("linf", x, 0)
    with pytest.raises(ValueError, match="norm must be one of linf, l2 for certificates, got 'l1'"):
        region_of("l1", x, 1.0)
    assert isinstance(region_of("linf", x, 0.1), Box)
