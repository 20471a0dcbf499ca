"""Values, derivatives, limits and numerical safety of the activations."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_paf.nn.activations import (
    ELU,
    PELU,
    Activation,
    ParametricActivation,
    PReLU,
    PReLUPlus,
    PSiLU,
    PSoftplus,
    PSSiLU,
    PSSiLUFixed,
    ReBLU,
    ReLU,
    SiLU,
    Softplus,
    Tanh,
)

FIXED = [ReLU, ELU, SiLU, Softplus, Tanh]
PARAMETRIC = [PReLU, PReLUPlus, PELU, ReBLU, PSoftplus, PSiLU, PSSiLUFixed, PSSiLU]
ALPHAS = (1e-3, -0.5, 1.0, 4.0, 100.0, -100.0)
SMOOTH = [Softplus, SiLU, PSoftplus, PSiLU, PSSiLUFixed, PSSiLU]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# Textbook formulas, as (class, arguments, function of x and the parameters in the order of `scalars()`).
TEXTBOOK = [
    (PReLU, {"alpha": 0.3}, lambda x, a: torch.where(x > 0, x, a * x)),
    (PReLUPlus, {"alpha": 1.4}, lambda x, a: torch.where(x > 0, a * x, 0 * x)),
    (PELU, {"alpha": -0.7}, lambda x, a: torch.where(x > 0, x, a * (x.exp() - 1))),
    (ReBLU, {"alpha": 0.6}, lambda x, a: torch.where(x > 0, x + a * ((x * x + 1).sqrt() - 1), 0 * x)),
    (PSoftplus, {"alpha": 2.5}, lambda x, a: (1 + (a.abs() * x).exp()).log() / a.abs()),
    (PSoftplus, {"alpha": -2.5}, lambda x, a: (1 + (a.abs() * x).exp()).log() / a.abs()),
    (PSiLU, {"alpha": 1.7}, lambda x, a: x / (1 + (-a.abs() * x).exp())),
    (PSiLU, {"alpha": -1.7}, lambda x, a: x / (1 + (-a.abs() * x).exp())),
    (PSSiLUFixed, {"alpha": 1.7, "beta": 0.2}, lambda x, b, a: x * ((a * x).sigmoid() - b) / (1 - b)),
    (PSSiLU, {"alpha": -1.7, "beta": 0.2}, lambda x, b, a: x * ((-a * x).sigmoid() - b) / (1 - b)),
    (PSSiLU, {"alpha": 1.7, "beta": -0.2}, lambda x, b, a: x * ((a * x).sigmoid() + b) / (1 + b)),
]


def grid(low=-6.0, high=6.0, steps=240):
    """An even number of points, so that 0 is not among them."""
    return torch.linspace(low, high, steps, dtype=torch.float64)


def test_these_lists_cover_all_activations():
    classes = (*Activation.__subclasses__(), *ParametricActivation.__subclasses__())
    found = {c for c in classes if c.__module__.startswith("lightning_paf.")}
    assert found - {ParametricActivation} == {*FIXED, *PARAMETRIC}


@pytest.mark.parametrize(("cls", "arguments", "textbook"), TEXTBOOK)
def test_value_and_all_first_derivatives_are_those_of_the_textbook_formula(cls, arguments, textbook):
    activation = cls(**arguments).double()
    x = grid().requires_grad_()
    weights = torch.randn_like(x)
    value = activation(x)
    parameters = list(activation.parameters())
    found = torch.autograd.grad((value * weights).sum(), [x, *parameters])
    reference = textbook(x, *activation.scalars())
    expected = torch.autograd.grad((reference * weights).sum(), [x, *parameters])
    torch.testing.assert_close([value, *found], [reference, *expected], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("cls", PARAMETRIC)
def test_gradcheck_and_gradgradcheck_in_x_and_in_the_parameters(cls):
    activation = cls(alpha=0.8).double()
    if cls is PSSiLU:
        activation.beta.data.fill_(0.2)  # the start of 1e-8 is closer to the kink of |beta| than the step of gradcheck
    x = grid(-3, 3, 8).requires_grad_()

    def function(x, *parameters):
        return activation(x)

    inputs = (x, *activation.parameters())
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("cls", SMOOTH)
def test_second_derivatives_of_smooth_activations(cls):
    activation = cls().double()
    x = grid().requires_grad_()
    (slope,) = torch.autograd.grad(activation(x).sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x)
    s, beta = x.detach().sigmoid(), 0.3 if cls is PSSiLUFixed else 0.0
    of_silu = s * (1 - s) * (2 + x.detach() * (1 - 2 * s)) / (1 - beta)
    torch.testing.assert_close(curvature, s * (1 - s) if "oftplus" in cls.__name__ else of_silu, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize(
    ("activation", "slope", "alpha_slope"),
    [
        (ReLU(), 0.0, None),
        (PReLU(0.3), 0.0, 0.0),
        (PReLUPlus(1.5), 0.0, 0.0),
        (ReBLU(0.3), 0.0, 0.0),
        (PELU(0.4), 0.4, 0.0),
        (PSiLU(2.0), 0.5, 0.0),
        (PSoftplus(2.0), 0.5, -math.log(2) / 4),
        (PSSiLU(1.0, 0.5), 0.0, 0.0),
    ],
    ids=lambda v: type(v).__name__,
)
def test_value_and_derivatives_at_zero(activation, slope, alpha_slope):
    x = torch.zeros(1, requires_grad=True)
    y = activation(x)
    y.backward()
    assert y.item() == pytest.approx(math.log(2) / 2 if isinstance(activation, PSoftplus) else 0.0)
    assert x.grad.item() == pytest.approx(slope)
    if alpha_slope is not None:
        assert activation.alpha.grad.item() == pytest.approx(alpha_slope)


@pytest.mark.parametrize(
    ("activation", "limit", "tolerance"),
    [
        (ReLU(), nn.ReLU(), 0),
        (ELU(), nn.ELU(), 0),
        (SiLU(), nn.SiLU(), 0),
        (Softplus(), nn.Softplus(threshold=100), 1e-12),
        (Tanh(), nn.Tanh(), 0),
        (PReLU(), nn.ReLU(), 0),
        (PReLUPlus(), nn.ReLU(), 0),
        (ReBLU(), nn.ReLU(), 0),
        (PELU(), nn.ELU(), 1e-12),
        (PSiLU(), nn.SiLU(), 1e-12),
        (PSoftplus(), nn.Softplus(threshold=100), 1e-12),
        (PSSiLUFixed(beta=0.0), nn.SiLU(), 1e-12),
        (PSSiLU(), nn.SiLU(), 2e-7),
        (PSiLU(1e9), nn.ReLU(), 1e-9),
        (PSoftplus(1e9), nn.ReLU(), 1e-9),
        (PReLU(0.25), nn.PReLU(), 1e-12),
    ],
    ids=str,
)
def test_initial_functions_and_limits(activation, limit, tolerance):
    x = grid()
    torch.testing.assert_close(activation.double()(x), limit.double()(x), atol=tolerance, rtol=0)


def test_pssilu_is_asymptotically_linear_on_both_sides():
    activation, x = PSSiLU(1.0, 0.3).double(), torch.tensor([-50.0, 50.0], dtype=torch.float64)
    torch.testing.assert_close(activation(x), torch.tensor([50 * 0.3 / 0.7, 50.0]).double(), atol=1e-5, rtol=0)


# ---- numerical safety


def make_all(alpha):
    return [*(cls() for cls in FIXED), *(cls(alpha=alpha) for cls in PARAMETRIC), PSSiLU(alpha, beta=0.9)]


ACTIVATIONS = {alpha: make_all(alpha) for alpha in ALPHAS}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=40, deadline=None)
@given(data=st.data(), alpha=st.sampled_from(ALPHAS))
def test_finite_input_gives_finite_output_and_gradients(dtype, data, alpha):
    width = 16 if dtype == torch.float16 else 32
    value = data.draw(st.floats(allow_nan=False, allow_infinity=False, width=width))
    x = torch.tensor([value]).to(dtype).nan_to_num().requires_grad_()  # float32 can round to inf in bfloat16
    for activation in ACTIVATIONS[alpha]:
        y = activation(x)
        gradients = torch.autograd.grad(y, [x, *activation.parameters()])
        assert y.dtype == gradients[0].dtype == dtype
        assert y.isfinite().all(), activation
        assert gradients[0].isfinite().all(), activation
        for gradient in gradients[1:]:  # x / (1 - beta)^2 exceeds float32 at the very end of its range
            assert not gradient.isnan().any(), activation
            assert gradient.isfinite().all() or x.abs() > 1e36, activation


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ends_of_the_range(dtype):
    end = torch.finfo(dtype).max
    for activation in (activation for alpha in (1.0, 100.0, 1e6) for activation in make_all(alpha)):
        for value in (-end, end, -100.0, 100.0, torch.finfo(dtype).tiny, -0.0):
            x = torch.tensor([value], dtype=dtype, requires_grad=True)
            y = activation(x)
            y.backward(torch.tensor([3.0], dtype=dtype))  # a gradient above 1 must not cause inf * 0 either
            assert y.isfinite().all(), activation
            assert not x.grad.isnan().any(), activation
            assert all(not p.grad.isnan().any() for p in activation.parameters()), activation


def test_gradients_at_the_ends_of_the_range_are_the_limits():
    end = torch.finfo(torch.float16).max
    x = torch.tensor([-end, end], dtype=torch.float16, requires_grad=True)
    activation = PSSiLU(1.0, 0.5)
    y = activation(x)
    y.sum().backward()
    assert y.tolist() == [end, end]
    assert x.grad.tolist() == [-1.0, 1.0]
    assert activation.alpha.grad.item() == 0
    assert activation.beta.grad.item() == pytest.approx(4 * end)


def test_reblu_neither_cancels_near_zero_nor_overflows_far_out():
    near = ReBLU(1.0)(torch.tensor([1e-4])).double() - torch.tensor([1e-4]).double()
    assert near.item() == pytest.approx(0.5e-8, rel=2e-3)
    assert ReBLU(0.5)(torch.tensor([1000.0], dtype=torch.float16)).item() == pytest.approx(1499.5, abs=0.5)


def test_nan_stays_nan():
    for activation in make_all(0.5):
        assert activation(torch.tensor([math.nan])).isnan().all(), activation


@pytest.mark.parametrize("cls", PARAMETRIC)
def test_half_precision_agrees_with_float32(cls):
    activation, x = cls(alpha=0.75), torch.linspace(-4, 4, 65)
    for dtype in (torch.bfloat16, torch.float16):
        error = (activation(x.to(dtype)).float() - activation(x)).abs().max()
        assert error < 8 * torch.finfo(dtype).eps


def test_parameter_gradient_is_summed_in_float32():
    activation = PReLU()
    x = torch.full((4, 8, 64, 64), -3.0, dtype=torch.float16)
    activation(x).sum().backward()
    assert activation.alpha.grad.item() == -3.0 * x.numel()  # 393216, six times the range of float16
    assert activation.alpha.grad.dtype == torch.float32


def test_autocast_keeps_bfloat16():
    x = torch.randn(4, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        h = nn.Linear(3, 3)(x)
        for activation in make_all(1.0):
            assert activation(h).dtype == h.dtype == torch.bfloat16


@pytest.mark.parametrize("cls", PARAMETRIC)
def test_only_the_input_is_saved_for_the_backward_pass(cls):
    kept = []
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        cls()(x)
    assert sum(t.numel() for t in kept if t.numel() > 1) == x.numel()


def test_compiles_to_one_graph():
    net = nn.Sequential(PSSiLU(), PSoftplus())
    x = torch.randn(3, 4, requires_grad=True)
    torch.compile(net, backend="eager", fullgraph=True)(x).sum().backward()
    compiled, x.grad = x.grad, None
    net(x).sum().backward()
    torch.testing.assert_close(compiled, x.grad)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_works_under_functorch():
    jacobian = torch.func.vmap(torch.func.jacrev(PSSiLU(1.0, 0.5)))(torch.zeros(2, 3))
    torch.testing.assert_close(jacobian, torch.zeros(2, 3, 3))


def test_scalar_input():
    y = PSiLU()(torch.tensor(0.0, requires_grad=True))
    assert y.shape == ()
    y.backward()
