"""LT-NODE and ALT-NODE: posterior, states at random times, averaged predictions."""

import math
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from helpers.fakes import images, spec
from scipy.special import gammaincinv
from torch import nn
from torch.distributions import Gamma

from lightning_paf.attacks import PGD
from lightning_paf.evaluation.identity import network_fingerprint
from lightning_paf.nets import ALTNODE, LTNODE, NODE
from lightning_paf.nets.ode.block import ODEBlock, Solver
from lightning_paf.nets.ode.end_time import EndTimeBlock, GammaPosterior
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.second_derivatives import require_second_derivatives
from lightning_paf.objectives import MART, TRADES, AdversarialCE, SteadyState
from lightning_paf.specs import DatasetSpec

SMALL = {"in_channels": 3, "width": 4, "groups": 2, "downsamplings": 1}
LATENT = pytest.mark.parametrize("cls", [LTNODE, ALTNODE])


class Fixed(nn.Module):
    """Posterior without bounds."""

    def __init__(self, concentration, rate):
        super().__init__()
        self.values = (concentration, rate)

    def forward(self, x):
        return Gamma(*(torch.tensor([value], dtype=x.dtype) for value in self.values))


class Linear(nn.Module):
    """f(z) = A z along the channels."""

    def __init__(self):
        super().__init__()
        self.matrix = torch.tensor([[-0.5, 1.0], [-1.0, 0.2]], dtype=torch.float64)

    def forward(self, t, z):
        return torch.einsum("ij,njhw->nihw", self.matrix, z)


def net(cls, **options):
    """A network in float64 whose weights are not small."""
    torch.manual_seed(0)
    made = cls(**SMALL | options).double().eval()
    for parameter in made.fc.parameters():
        nn.init.normal_(parameter)
    return made


def pictures(n=2):
    return torch.rand(n, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_parameter_counts_are_those_of_the_authors_networks():
    counts = {cls: sum(p.numel() for p in cls().parameters()) for cls in (NODE, LTNODE, ALTNODE)}
    assert counts == {NODE: 208_266, LTNODE: 208_266 + 2, ALTNODE: 208_266 + 132_354}


@pytest.mark.parametrize("size", [(28, 28), (32, 32)])
def test_the_stem_divides_the_side_by_four(size):
    assert LTNODE().stem(torch.rand(1, 1, *size)).shape == (1, 64, (size[0] - 2) // 4, (size[1] - 2) // 4)


@pytest.mark.parametrize("solver", ["rk4", "dopri5"])
def test_a_linear_field_gives_the_matrix_exponential(solver):
    block, z = EndTimeBlock(Linear(), t_end=5.0, step=0.1, solver=solver), torch.randn(3, 2, 1, 1).double()
    times = torch.tensor([[0.013, 1.0, 2.7], [0.1, 0.777, 4.99]], dtype=torch.float64)
    expected = torch.matrix_exp(Linear().matrix * times[..., None, None]) @ z[..., 0]
    torch.testing.assert_close(block.states_at(z, times)[..., 0], expected, atol=1e-5, rtol=0)


def test_one_solution_at_ten_times_is_ten_solutions():
    made = net(LTNODE)
    z = made.stem(pictures())
    times = torch.tensor([0.1, 0.4, 0.5, 0.9, 1.2, 1.3, 2.0, 2.4, 2.9, 3.0]).double()
    found = made.block.states_at(z, times[:, None])
    for time, state in zip(times.tolist(), found, strict=True):
        alone = ODEBlock(made.block.field, t_end=round(time, 6), step=0.1, solver="rk4")
        torch.testing.assert_close(state, alone(z), atol=1e-5, rtol=0)


def test_times_of_images_are_those_of_all_images():
    made = net(LTNODE)
    z, times = made.stem(pictures(3)), torch.tensor([[0.3, 1.04, 2.0], [1.5, 0.3, 0.0]]).double()
    found = made.block.states_at(z, times)
    for s in range(2):
        for i in range(3):
            torch.testing.assert_close(
                found[s, i], made.block.states_at(z[i : i + 1], times[s : s + 1, i : i + 1])[0, 0]
            )
    torch.testing.assert_close(found[1, 2], z[2], atol=1e-4, rtol=0)


def test_times_have_the_gradient_of_the_velocity():
    block, z = EndTimeBlock(Linear(), t_end=5.0, step=0.1, solver="rk4"), torch.randn(1, 2, 1, 1).double()
    times = torch.tensor([[0.37], [0.4], [2.71]], dtype=torch.float64, requires_grad=True)
    states = block.states_at(z, times)
    (found,) = torch.autograd.grad(states.sum(), times)
    torch.testing.assert_close(found, Linear()(0, states[:, 0]).sum((1, 2, 3))[:, None], atol=1e-4, rtol=1e-4)


def test_times_beyond_the_end_are_reduced_and_undefined_ones_give_nan():
    block, z = EndTimeBlock(Linear(), t_end=1.0, step=0.5), torch.randn(1, 2, 1, 1).double()
    found = block.states_at(z, torch.tensor([[1.0], [77.0], [math.nan]], dtype=torch.float64))
    assert torch.equal(found[0], found[1])
    assert found[2].isnan().all()


@LATENT
def test_logits_are_those_of_the_equations(cls):
    """Float64, with functions only."""
    made, x = net(cls, samples=3, step=0.25), pictures()
    w = made.state_dict()

    def conv(z, name, **options):
        return F.conv2d(z, w[f"{name}.weight"], w[f"{name}.bias"], **options)

    def norm(z, name):
        return F.group_norm(z, 2, w[f"{name}.weight"], w[f"{name}.bias"])

    def stem(z, name):
        return conv(F.relu(norm(conv(z, f"{name}.0"), f"{name}.1")), f"{name}.3", stride=2, padding=1)

    def velocity(t, z):
        for i in (1, 2):
            z = torch.cat([torch.full_like(z[:, :1], t), F.relu(norm(z, f"block.field.norm{i}"))], dim=1)
            z = conv(z, f"block.field.conv{i}.conv", padding=1)
        return norm(z, "block.field.norm3")

    def step(t, z, h):
        k1 = velocity(t, z)
        k2 = velocity(t + h / 3, z + h * k1 / 3)
        k3 = velocity(t + h * 2 / 3, z + h * (k2 - k1 / 3))
        k4 = velocity(t + h, z + h * (k1 - k2 + k3))
        return z + h * (k1 + 3 * (k2 + k3) + k4) / 8

    a = b = torch.ones(2)
    if cls is ALTNODE:
        z = F.relu(norm(stem(x, "posterior.stem"), "posterior.norm")).mean((2, 3))
        a, b = (z @ w["posterior.fc.weight"].T + w["posterior.fc.bias"]).exp().T
    mean = 0
    for level in (1 / 6, 1 / 2, 5 / 6):
        times = torch.from_numpy(gammaincinv(a.detach().numpy(), level)) / b
        rows = []
        for i, time in enumerate(times.tolist()):
            z, n = stem(x[i : i + 1], "stem"), math.floor(time / 0.25)
            for k in range(n):
                z = step(0.25 * k, z, 0.25)
            after, s = step(0.25 * n, z, 0.25), time / 0.25 - n
            slope, last = 0.25 * velocity(0.25 * n, z), 0.25 * velocity(0.25 * (n + 1), after)
            z = (2 * s**3 - 3 * s**2 + 1) * z + (s**3 - 2 * s**2 + s) * slope
            z = z + (3 * s**2 - 2 * s**3) * after + (s**3 - s**2) * last
            rows.append(F.relu(norm(z, "norm")).mean((2, 3)) @ w["fc.weight"].T + w["fc.bias"])
        mean = mean + torch.cat(rows).softmax(1) / 3
    torch.testing.assert_close(made(x), mean.log(), atol=1e-10, rtol=1e-10)


@LATENT
def test_the_mean_of_probabilities_sums_to_one_and_has_more_entropy(cls):
    made, x = net(cls), pictures(5)
    with made.recording(made._own_draw) as records:
        mean = made(x).exp()
    parts = records[0].logits.softmax(-1)
    torch.testing.assert_close(mean.sum(1), torch.ones(5).double())
    torch.testing.assert_close(mean, parts.mean(0))
    assert (torch.special.entr(mean).sum(1) >= torch.special.entr(parts).sum(-1).mean(0)).all()


def test_a_narrow_posterior_is_a_fixed_end_time():
    node, latent = net(NODE, t_end=1.7), net(LTNODE)
    missing = latent.load_state_dict(node.state_dict(), strict=False)
    assert missing.missing_keys == ["posterior.concentration", "posterior.rate"]
    latent.posterior = Fixed(1e4, 1e4 / 1.7)
    torch.testing.assert_close(latent(pictures()), node(pictures()).log_softmax(1), atol=1e-2, rtol=0)


def test_a_constant_encoder_is_one_posterior_for_all():
    alt, latent = net(ALTNODE), net(LTNODE, posterior=(1.5, 0.7))
    nn.init.zeros_(alt.posterior.fc.weight)
    alt.posterior.fc.bias.data = torch.tensor([1.5, 0.7]).double().log()
    latent.load_state_dict(alt.state_dict(), strict=False)
    torch.testing.assert_close(alt(pictures()), latent(pictures()), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("solver", get_args(Solver))
@LATENT
def test_input_gradients_are_exact(cls, solver):
    made, x = net(cls, samples=2, step=0.25, solver=solver), pictures(1).requires_grad_()
    if cls is ALTNODE:
        nn.init.normal_(made.posterior.fc.weight)
    direction = torch.randn_like(x)
    (gradient,) = torch.autograd.grad(made(x)[0, 3], x)
    with torch.no_grad():
        found = (made(x + 1e-6 * direction) - made(x - 1e-6 * direction))[0, 3] / 2e-6
    assert float((gradient * direction).sum()) == pytest.approx(float(found), rel=1e-5)


@LATENT
def test_quantiles_are_reproducible_and_random_times_have_their_mean(cls):
    made, fixed, x = (*(net(cls, random=mode, samples=200, solver="euler") for mode in (True, False)), pictures(1))
    assert torch.equal(fixed(x), fixed(x))
    assert not torch.equal(made(x), made(x))
    torch.testing.assert_close(made(x).exp(), fixed(x).exp(), atol=0.02, rtol=0)
    assert not torch.equal(fixed.train()(x), fixed.eval()(x))


def test_an_attack_on_random_times_raises_the_expected_loss():
    torch.manual_seed(0)
    model = Classifier(net(LTNODE, random=True, samples=4, step=0.5, solver="euler").float(), spec()).eval()
    x, y = images()
    x_adv = PGD(0.1, step_size=0.04, steps=4)(model, x, y)

    def expected_loss(x):
        with torch.no_grad():
            return -torch.stack([model(x).exp() for _ in range(10)]).mean(0).log().gather(1, y[:, None]).mean()

    assert expected_loss(x_adv) > expected_loss(x) + 0.05


@pytest.mark.parametrize("objective", [AdversarialCE, TRADES, MART])
@LATENT
def test_other_objectives_train_the_posterior(cls, objective):
    model = Classifier(net(cls, samples=2, step=0.5, solver="euler").float(), spec()).train()
    made = objective()
    made.bind(model)
    made(model, *images(), PGD(0.1, step_size=0.1, steps=1)).loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.net.posterior.parameters())


@LATENT
def test_features_are_those_of_the_last_time(cls):
    made = net(cls)
    model = Classifier(made, spec()).double()
    with made.recording(made._own_draw) as records:
        out = model.outputs(pictures())
    assert out.features.shape == (2, 4)
    torch.testing.assert_close(made.fc(out.features), records[0].logits[-1])


def test_settings_separate_networks():
    settings = [{}, {"samples": 5}, {"random": True}, {"prior": (2.0, 1.0)}, {"t_end": 40.0}, {"solver": "euler"}]
    assert len({network_fingerprint(net(LTNODE, **options)) for options in settings}) == len(settings)


def test_a_posterior_returns_to_its_domain():
    posterior = GammaPosterior(1.0, 1.0)
    posterior.concentration.data.fill_(-3.0)
    posterior.rate.data.fill_(1e6)
    distribution = posterior(torch.zeros(1))
    assert distribution.concentration == torch.tensor(1e-3)
    assert distribution.rate == torch.tensor(100.0)
    posterior.return_to_domain()
    assert posterior.concentration == torch.tensor(1e-3)


@LATENT
def test_they_are_twice_differentiable(cls):
    model = Classifier(net(cls, samples=2, step=0.5, solver="euler"), spec())
    require_second_derivatives(model, pictures(), "GradAlign")
    x = pictures(1).requires_grad_()

    def first(x):
        torch.manual_seed(0)
        return torch.autograd.grad(model(x)[0, 3], x, create_graph=True)[0]

    direction = torch.randn_like(x)
    for mode in (False, True):
        model.train(mode)
        (second,) = torch.autograd.grad(first(x).square().sum(), x)
        ends = [first(x + sign * 1e-5 * direction).square().sum() for sign in (-1, 1)]
        assert float((second * direction).sum()) == pytest.approx(float((ends[1] - ends[0]).detach() / 2e-5), rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"posterior": (0.0, 1.0)}, r"posterior must be two numbers in \[0\.001, 100\], got \[0\.0, 1\.0\]\. Pass"),
        ({"posterior": (1.0, math.nan)}, "posterior must be"),
        ({"posterior": (1.0, 101.0)}, "posterior must be"),
        ({"prior": (0.0, 0.5)}, r"prior must be two numbers, finite and > 0, got \[0\.0, 0\.5\]"),
        ({"prior": (2.0, math.inf)}, "prior must be"),
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"t_end": 0.0}, "t_end must be finite and > 0, got 0"),
        ({"t_end": -1.0}, "t_end must be finite and > 0, got -1"),
        ({"step": 0.3}, r"t_end must be a multiple of the step 0\.3, got 50"),
        ({"groups": 3}, "groups must divide the 4 channels"),
        ({"downsamplings": -1}, "downsamplings must be at least 0, got -1"),
    ],
)
def test_invalid_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LTNODE(**SMALL | options)


def test_images_that_are_too_small_are_refused():
    tiny = DatasetSpec("tiny", 10, 5, (0.5,), (0.25,))
    with pytest.raises(ValueError, match="Images must have at least 6 x 6 pixels for LTNODE, got 5 x 5"):
        Classifier(LTNODE(width=4, groups=2), tiny)
    smallest = LTNODE(width=4, groups=2, step=0.5).eval()
    assert smallest(torch.rand(1, 1, 6, 6)).shape == (1, 10)


def test_the_steady_state_penalty_is_refused():
    with pytest.raises(ValueError, match="must have a fixed end time for SteadyState"):
        SteadyState().bind(Classifier(net(LTNODE), spec()))
