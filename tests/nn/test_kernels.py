"""Compiled kernels against their formulas."""

import math

import pytest
import torch
from helpers.devices import devices
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_paf.nn.activations import ParametricActivation, PSiLU, PSoftplus, PSSiLU, kernels
from lightning_paf.nn.activations.formula import Formula
from lightning_paf.nn.activations.kernels import CKernel, CompiledKernel, TableKernel, kernel_for
from lightning_paf.nn.activations.kernels.c_source import UntranslatableError, c_source
from lightning_paf.nn.activations.kernels.compiler import CompilerError, load

PARAMETRIC = [c for c in ParametricActivation.__subclasses__() if c.__module__.startswith("lightning_paf.")]
all_kernels = pytest.mark.parametrize("cls", PARAMETRIC)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)

try:
    load("int seven(void) { return 7; }")
except CompilerError as error:
    pytestmark = pytest.mark.skip(reason=f"the machine has {error}")


def fused(cls, **arguments):
    activation = cls(**arguments)
    activation.fused = True
    return activation


def exact(activation, x):
    """Value, slope and slopes by the parameters in double precision."""
    inputs = (x.double(), *(s.detach().double() for s in activation.scalars()))
    formula = activation.formula
    return [f(*inputs).expand(x.shape) for f in (formula.value, formula.slope, *formula.parameter_slopes)]


def close(found, expected, dtype, scale=None):
    scale = expected.abs() + 1 if scale is None else scale
    return bool(((found.double() - expected).abs() <= 16 * torch.finfo(dtype).eps * scale).all())


@devices
@dtypes
@all_kernels
def test_value_and_gradients_are_those_of_the_formula(cls, dtype, device):
    activation = fused(cls, alpha=1.7).to(device)
    x = torch.linspace(-12, 12, 20_000).to(device, dtype).requires_grad_()  # three blocks, the last one not full
    weight = torch.rand(20_000).to(device, dtype)
    y = activation(x)
    assert y.grad_fn.name().startswith("FusedPointwise")
    assert not cls().to(device)(x).grad_fn.name().startswith("FusedPointwise")
    assert y.dtype == dtype
    (y * weight).sum().backward()
    value, slope, *by_parameter = exact(activation, x.detach())
    assert close(y.detach(), value, dtype)
    assert close(x.grad, weight.double() * slope, dtype)
    for parameter, terms in zip(activation.scalars(), by_parameter, strict=True):
        terms = weight.double() * terms
        if parameter.requires_grad:
            assert parameter.grad.dtype == torch.float32
            assert close(parameter.grad, terms.sum(), torch.float32, scale=8 * terms.abs().sum())
    activation.requires_grad_(False)  # now the gradient of x alone
    (frozen,) = torch.autograd.grad((activation(x) * weight).sum(), x)
    torch.testing.assert_close(frozen, x.grad)


@devices
@dtypes
@all_kernels
def test_only_results_out_of_range_are_not_finite(cls, dtype, device):
    largest = torch.finfo(dtype).max
    points = [0.0, 1e-30, 1e-4, 20.0, 87.0, 88.0, 89.0, 104.0, 1e4, 1e18, 1e20, 1e30, largest]
    x = torch.tensor([*points, *(-p for p in points)]).to(device, dtype).requires_grad_()
    for alpha in (1.0, -3.0, 100.0, 1e-3):
        activation = fused(cls, alpha=alpha).to(device)
        y = activation(x)
        (slope,) = torch.autograd.grad(y.sum(), x)
        in_range = exact(activation, x.detach())[0].abs() <= largest
        assert y[in_range].isfinite().all()
        assert not y.isnan().any()
        assert slope.isfinite().all()
    assert fused(cls).to(device)(torch.tensor([math.nan, 1.0], device=device)).isnan().tolist() == [True, False]


@dtypes
def test_far_from_zero_smooth_activations_equal_their_limits(dtype):
    x = torch.tensor([-1e30, -1e4, 1e4, 1e30]).to(dtype)
    for cls in (PSiLU, PSoftplus):
        torch.testing.assert_close(fused(cls)(x), x.relu())
    beta = 0.25
    torch.testing.assert_close(fused(PSSiLU, beta=beta)(x), torch.where(x > 0, x, -beta / (1 - beta) * x))


@given(st.floats(-1e4, 1e4, width=32), st.floats(0.05, 20), st.floats(0, 0.9))
@settings(max_examples=60, deadline=None)
def test_pssilu_at_any_input_and_parameters(x, alpha, beta):
    activation = fused(PSSiLU, alpha=alpha, beta=beta or 1e-8)
    x = torch.tensor([x])
    value, slope = exact(activation, x)[:2]
    scale = 1 + 10 * (1 + x.double().abs()) / (1 - beta)  # effect of rounding alpha * x
    assert close(activation(x).detach(), value, torch.float32, scale)
    x.requires_grad_()
    assert close(torch.autograd.grad(activation(x), x)[0], slope, torch.float32, scale)


@devices
def test_layouts_are_kept_and_gradients_can_have_another_layout(device):
    activation, plain = fused(PSSiLU, beta=0.2).to(device), PSSiLU(beta=0.2).to(device)
    x = torch.randn(2, 5, 4, 3).to(device, memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(2, 5, 4, 3, device=device)  # contiguous, so its product's gradient is too
    y = activation(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    (found,) = torch.autograd.grad((y.contiguous() * weight).sum(), x)
    (expected,) = torch.autograd.grad((plain(x) * weight).sum(), x)
    torch.testing.assert_close(y, plain(x))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(3, dtype=torch.float64),
        torch.zeros(3, dtype=torch.float16),
        torch.zeros(4, 4)[:, :2],
        torch.zeros(0),
    ],
    ids=["float64", "float16", "gaps", "empty"],
)
def test_inputs_without_a_kernel_are_computed_by_the_formula(x):
    activation = fused(PSSiLU)
    assert kernel_for(activation.formula, x, activation.scalars()) is None
    torch.testing.assert_close(activation(x), PSSiLU()(x))


def test_parameters_per_channel_are_computed_by_the_formula():
    x = torch.randn(2, 5, 3, 3)
    torch.testing.assert_close(fused(PSSiLU).per_channel(5)(x), PSSiLU().per_channel(5)(x))


def test_second_derivatives():
    activation = fused(PSiLU, alpha=1.3)
    x = torch.linspace(-3, 3, 11, requires_grad=True)
    (slope,) = torch.autograd.grad(activation(x).sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x)
    s = (1.3 * x.detach()).sigmoid()
    expected = 1.3 * s * (1 - s) * (2 + 1.3 * x.detach() * (1 - 2 * s))
    torch.testing.assert_close(curvature, expected)


def test_second_derivatives_of_a_frozen_network_in_bfloat16_are_refused():
    activation = fused(PSiLU).requires_grad_(False)
    x = torch.linspace(-3, 3, 11, dtype=torch.bfloat16, requires_grad=True)
    y = activation(x)
    torch.autograd.grad(y.sum(), x, retain_graph=True)
    with pytest.raises(RuntimeError, match=r"speed\.fused false"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


def test_every_number_of_bfloat16_is_the_rounded_result():
    activation = fused(PSSiLU, alpha=1.7, beta=0.2)
    x = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    x = x[x.isfinite()]
    value, slope = exact(activation, x)[:2]
    found, found_slope = TableKernel(activation.formula).forward_and_slope(x, activation.scalars())
    assert close(found, value, torch.bfloat16, scale=value.abs() + 1e-38)
    assert (found == value.float().bfloat16()).float().mean() > 0.99
    assert close(found_slope, slope, torch.bfloat16)


def test_the_sums_do_not_depend_on_the_number_of_threads():
    activation = fused(PSSiLU, beta=0.1)
    x = torch.randn(100_000)
    gradients, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            activation.zero_grad()
            activation(x).sum().backward()
            gradients.append(activation.alpha.grad.clone())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*gradients)


@dtypes
def test_kernels_by_torch_compile(dtype):
    """The CUDA kernel is tested up to the generation of Triton code."""
    activation = PSSiLU(alpha=1.7, beta=0.2)
    kernel = CompiledKernel(activation.formula, backend="aot_eager")
    x, parameters = torch.randn(2, 5, 4, 4).to(dtype).to(memory_format=torch.channels_last), activation.scalars()
    grad = torch.rand_like(x)
    value, slope, *by_parameter = exact(activation, x)
    by_x, sums = kernel.backward_all(grad, x, parameters)
    assert kernel.forward(x, parameters).stride() == by_x.stride() == x.stride()
    assert close(kernel.forward(x, parameters), value, dtype)
    for found in (by_x, kernel.backward(grad.contiguous(), x, parameters)):
        assert close(found, grad.double() * slope, dtype)
    for found, terms in zip(sums, by_parameter, strict=True):
        assert close(found, (grad.double() * terms).sum(), torch.float32, 8 * (grad.double() * terms).abs().sum())


def no_compiler(source):
    raise CompilerError("no C compiler")


@pytest.mark.parametrize(
    ("value", "patches", "message"),
    [
        (lambda x, a: a * torch.special.airy_ai(x), [], r"airy_ai.*speed\.fused false"),
        (lambda x, a: a * x, [(CKernel, "forward", lambda self, x, parameters: x + 0.01)], "differs"),
        (lambda x, a: a * x - 1, [(kernels.c_kernel, "load", no_compiler)], "no C compiler"),
    ],
    ids=["unknown operation", "wrong kernel", "no compiler"],
)
def test_where_a_kernel_fails_the_formula_is_used_with_a_warning(value, patches, message, monkeypatch):
    formula = Formula(value=value, slope=lambda x, a: a * x, parameter_slopes=(lambda x, a: x,))
    for patch in patches:
        monkeypatch.setattr(*patch)
    with pytest.warns(UserWarning, match=message):
        assert kernel_for(formula, torch.zeros(3), [torch.ones(1)]) is None


def test_errors_of_the_compiler_and_of_the_translation_are_reported():
    with pytest.raises(CompilerError, match="error"):
        load("this is not C")
    with pytest.raises(UntranslatableError, match="erfinv"):
        c_source(Formula(value=lambda x: x.erfinv(), slope=lambda x: x, parameter_slopes=()))


def test_equal_expressions_are_computed_once():
    assert c_source(PSSiLU.formula).split("void backward_all")[1].count("sigmoid_of(") == 1
