"""Translation of a `Formula` into C loops."""

from collections.abc import Callable, Mapping
from importlib.resources import files
from string import Template
from types import MappingProxyType
from typing import Any

from torch import Tensor, fx

from lightning_paf.nn.activations.formula import Formula


class UntranslatableError(Exception):
    """A formula calls an operation that cannot be translated to C."""


_OPERATIONS: Mapping[str, str] = MappingProxyType(
    {
        "add": "{0} + {1}",
        "sub": "{0} - {1}",
        "mul": "{0} * {1}",
        "truediv": "{0} / {1}",
        "neg": "-{0}",
        "square": "{0} * {0}",
        "addcmul": "{0} + {1} * {2}",
        "gt": "{0} > {1} ? 1.0f : 0.0f",
        "lt": "{0} < {1} ? 1.0f : 0.0f",
        "ge": "{0} >= {1} ? 1.0f : 0.0f",
        "le": "{0} <= {1} ? 1.0f : 0.0f",
        "where": "{0} != 0.0f ? {1} : {2}",
        "ones_like": "1.0f",
        "abs": "fabsf({0})",
        "sign": "sign_of({0})",
        "sqrt": "sqrtf({0})",
        "hypot": "hypot_of({0}, {1})",
        "exp": "exp_of({0})",
        "expm1": "expm1_of({0})",
        "sigmoid": "sigmoid_of({0})",
        "softplus": "softplus_of({0})",
    }
)
"""C forms of torch functions, tensor methods and operators."""

_ELEMENTS: Mapping[str, str] = MappingProxyType({"input": "x", "gradient": "g"})
"""Names of the elements of arrays inside a loop."""

_LOOP = Template("""
void $name($arguments, int64_t count) {
$scalars
    const int64_t blocks = (count + BLOCK - 1) / BLOCK;
    #pragma omp parallel for schedule(static) if (blocks > 1)
    for (int64_t block = 0; block < blocks; ++block) {
        const int64_t begin = block * BLOCK, end = begin + BLOCK < count ? begin + BLOCK : count;
$sums
        #pragma omp simd $reduction
        for (int64_t i = begin; i < end; ++i) {
$body
        }
$totals
    }
}
""")


class _Code:
    """Statements for the parameters and for every element, without duplicates."""

    def __init__(self) -> None:
        self.scalars: list[str] = []
        self.elements: list[str] = []
        self._names: dict[str, str] = {}
        self._of_elements = {"x"}

    def add(self, function: Callable[..., Tensor], parameters: int) -> str:
        """Append a function of `x, p0, p1, ...`, and return the name of its result."""
        names: dict[fx.Node, str] = {}
        inputs = iter(["x", *(f"p{i}" for i in range(parameters))])
        for node in fx.Tracer().trace(function).nodes:
            if node.op == "output":
                return _operand(node.args[0], names)
            names[node] = next(inputs) if node.op == "placeholder" else self._translated(node, names)
        raise AssertionError("a traced graph ends with its output")

    def _translated(self, node: fx.Node, names: Mapping[fx.Node, str]) -> str:
        operation = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "?")
        operands = [_operand(argument, names) for argument in node.args]
        if operation == "clamp" and len(operands) == 1:
            return self._named(_clamp(operands[0], node.kwargs), operands)
        if operation not in _OPERATIONS or node.kwargs:
            raise UntranslatableError(operation)
        if operation == "truediv" and operands[1] not in self._of_elements:
            # A division costs as much as the rest of the loop; for a parameter, one division serves all elements.
            operation, operands[1] = "mul", self._named(f"1.0f / {operands[1]}", [operands[1]])
        return self._named(_OPERATIONS[operation].format(*operands), operands)

    def _named(self, expression: str, operands: list[str]) -> str:
        if expression not in self._names:
            name = self._names[expression] = f"t{len(self._names)}"
            per_element = not self._of_elements.isdisjoint(operands)
            (self.elements if per_element else self.scalars).append(f"const float {name} = {expression};")
            if per_element:
                self._of_elements.add(name)
        return self._names[expression]


def c_source(formula: Formula) -> str:
    """Generate the C functions `forward`, `backward` and `backward_all`.

    `backward` differentiates by x, and `backward_all` by x and all parameters in one pass. The latter writes one
    sum per block and parameter, so that the result does not depend on the number of threads.

    Args:
        formula: Formula in float32, with scalar parameters.

    Raises:
        UntranslatableError: The formula cannot be translated to C.
    """
    number = len(formula.parameter_slopes)
    forward, backward, both = _Code(), _Code(), _Code()
    value = forward.add(formula.value, number)
    slope = backward.add(formula.slope, number)
    slope_again = both.add(formula.slope, number)
    by_parameter = [both.add(f, number) for f in formula.parameter_slopes]
    sums = [f"sum{i} += g * {expression};" for i, expression in enumerate(by_parameter)]
    return (
        files("lightning_paf.nn.activations.kernels").joinpath("elementwise.h").read_text()
        + _loop("forward", ["input"], number, forward, [f"output[i] = {value};"])
        + _loop("backward", ["gradient", "input"], number, backward, [f"output[i] = g * {slope};"])
        + _loop("backward_all", ["gradient", "input"], number, both, [f"output[i] = g * {slope_again};", *sums], number)
    )


def _loop(name: str, arrays: list[str], parameters: int, code: _Code, results: list[str], sums: int = 0) -> str:
    arguments = [f"const float *restrict {array}" for array in arrays]
    arguments += [f"const float *q{i}" for i in range(parameters)]
    arguments += ["float *restrict output", *(["float *sums"] if sums else [])]
    loads = [f"const float {_ELEMENTS[array]} = {array}[i];" for array in reversed(arrays)]
    return _LOOP.substitute(
        name=name,
        arguments=", ".join(arguments),
        scalars=_lines(4, [f"const float p{i} = saturated(*q{i});" for i in range(parameters)] + code.scalars),
        sums=_lines(8, [f"float sum{i} = 0.0f;" for i in range(sums)]),
        reduction=f"reduction(+ : {', '.join(f'sum{i}' for i in range(sums))})" if sums else "",
        body=_lines(12, loads + code.elements + results),
        totals=_lines(8, [f"sums[block * {sums} + {i}] = sum{i};" for i in range(sums)]),
    )


def _lines(indent: int, statements: list[str]) -> str:
    return "\n".join(" " * indent + statement for statement in statements)


def _operand(argument: Any, names: Mapping[fx.Node, str]) -> str:
    if isinstance(argument, fx.Node):
        return names[argument]
    if isinstance(argument, int | float):
        return f"{float(argument)!r}f"
    raise UntranslatableError(type(argument).__name__)


def _clamp(operand: str, limits: Mapping[str, Any]) -> str:
    if not limits.keys() <= {"min", "max"} or not all(isinstance(limit, int | float) for limit in limits.values()):
        raise UntranslatableError("clamp with limits other than numbers")
    if "min" in limits:
        operand = f"at_least({operand}, {float(limits['min'])!r}f)"
    return f"at_most({operand}, {float(limits['max'])!r}f)" if "max" in limits else operand
