"""The graph of a network as layers with bounds."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from lightning_paf.nn.activations import Activation
from lightning_paf.nn.bounds.curve import Curve
from lightning_paf.nn.bounds.functions import FUNCTIONS, METHODS, Traced
from lightning_paf.nn.bounds.interval import Interval
from lightning_paf.nn.bounds.layers.base import Layer
from lightning_paf.nn.bounds.layers.monotone import Monotone
from lightning_paf.nn.bounds.layers.pointwise import Pointwise
from lightning_paf.nn.bounds.modules import layer_of
from lightning_paf.nn.equivalence import has_global_hooks, is_hooked
from lightning_paf.nn.modes import frozen
from lightning_paf.nn.sync_batch_norm import CpuSyncBatchNorm

_UNTRACEABLE = (TypeError, fx.proxy.TraceError, RuntimeError, AttributeError)
"""Errors of `torch.fx` for a forward pass that it cannot trace."""


class UnboundedError(ValueError):
    """A network contains a module or function without bounds."""

    def __init__(self, found: str) -> None:
        super().__init__(
            f"The network must consist of layers with bounds, got {found}. Bounds exist for convolution, linear "
            "layers, batch normalisation, average pooling, addition, reshaping, and activations with known inflection "
            "points. Pass a network of these, such as SmallConvNet, CifarResNet or PreActResNet."
        )


@dataclass(frozen=True)
class Step:
    """A layer with the numbers of the steps that it reads; the images have number 0."""

    layer: Layer
    inputs: tuple[int, ...]


class Network:
    """A network as layers with bounds, in the order of computation.

    Weights are those of the model, so that bounds are differentiable by them. Batch normalisation uses running
    statistics, whatever the mode of the model.

    Args:
        model: Maps images (N, C, H, W) to logits (N, classes).
        image: An image (1, C, H, W).

    Attributes:
        steps: Layers; step k is `steps[k - 1]`.
        output: Number of the step that computes the logits.

    Raises:
        UnboundedError: A module or function has no bounds; the first one is named.
    """

    def __init__(self, model: nn.Module, image: Tensor) -> None:
        if has_global_hooks():
            raise UnboundedError("global hooks of modules")
        with frozen(model):
            graph = _trace(model)
        builder = _Builder(fx.GraphModule(model, graph))
        output = builder.run(image)
        if not isinstance(output, Traced):
            raise UnboundedError(f"an output of type {type(output).__name__}")
        self.steps, self.output = builder.steps, output.step

    @property
    def activations(self) -> list[int]:
        """Numbers of the steps that are activations."""
        return [number for number, step in enumerate(self.steps, 1) if isinstance(step.layer, Pointwise)]

    def curve(self, activation: int) -> Curve:
        """The function of an activation, by its number."""
        layer = self.steps[activation - 1].layer
        assert isinstance(layer, Pointwise)
        return layer.curve


def _trace(model: nn.Module) -> fx.Graph:
    tracer = _Tracer()
    try:
        return tracer.trace(model)
    except _UNTRACEABLE as error:
        message = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UnboundedError(
            f"{tracer.failed or type(model).__name__}, which torch.fx cannot trace ({message})"
        ) from error


class _Tracer(fx.Tracer):
    """Traces `forward` down to layers of PyTorch and of this package.

    Attributes:
        failed: The innermost module whose `forward` could not be traced.
    """

    failed: str | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Activation | CpuSyncBatchNorm) or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        name = f"{type(m).__name__} ({self.path_of_module(m)})"
        if is_hooked(m):
            raise UnboundedError(f"hooks of {name}")
        try:
            return super().call_module(m, forward, args, kwargs)
        except _UNTRACEABLE:
            self.failed = self.failed or name
            raise

    def get_fresh_qualname(self, prefix: str) -> NoReturn:
        raise TypeError("a tensor that the forward pass creates would become a constant")


class _Builder(fx.Interpreter):
    """Runs a graph on one image, and collects the layers that depend on it."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.steps: list[Step] = []

    def run_node(self, n: fx.Node) -> Any:
        """Refuse changes in place that other layers see; the graph does not show them."""
        if self._in_place(n) and self._is_shared(n.all_input_nodes[0]):
            raise UnboundedError(f"{n.target}, which changes in place a tensor that another layer reads")
        return super().run_node(n)

    def _in_place(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return bool(getattr(self.fetch_attr(str(node.target)), "inplace", False))
        more = (*node.args[1:2], node.kwargs.get("inplace"))  # `F.relu(x, True)`
        return node.target is operator.iadd or any(word is True for word in more)

    def _is_shared(self, node: fx.Node) -> bool:
        """Whether a tensor, or one that may share its memory, is read more than once."""
        traced = self.env[node]
        if len(node.users) > 1 or not isinstance(traced, Traced) or traced.step == 0:
            return True
        layer = self.steps[traced.step - 1].layer
        moved = isinstance(layer, Monotone) and not layer.error
        return (moved or self._in_place(node)) and self._is_shared(node.all_input_nodes[0])

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        return Traced(0, super().placeholder(target, args, kwargs))

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module = self.fetch_attr(target)
        (x,) = args if len(args) == 1 and not kwargs else (None,)
        layer = layer_of(module, x.sample) if isinstance(x, Traced) else None
        return self._add(layer, f"{type(module).__name__} ({target})", args)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if not _traced(args, kwargs):
            return super().call_function(target, args, kwargs)
        if target is getattr and args[1] in ("shape", "dtype", "device", "ndim"):
            return getattr(args[0].sample, args[1])
        name = getattr(target, "__name__", str(target))
        return self._add(self._apply(FUNCTIONS.get(target), args, kwargs), f"the function {name}", args, kwargs)

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        if not _traced(args, kwargs):
            return super().call_method(target, args, kwargs)
        if target in ("size", "dim"):
            return getattr(args[0].sample, target)(*args[1:])
        return self._add(self._apply(METHODS.get(target), args, kwargs), f"the method {target}", args, kwargs)

    def _apply(self, rule: Callable[..., Layer | None] | None, args: Any, kwargs: Any) -> Layer | None:
        try:
            return rule and rule(*args, **kwargs)
        except TypeError:  # arguments that the rule does not support
            return None

    def _add(self, layer: Layer | None, name: str, *arguments: Any) -> Traced:
        if layer is None:
            raise UnboundedError(f"{name}, which has none")
        inputs = _traced(*arguments)
        with torch.no_grad():
            sample = layer.interval(tuple(Interval(x.sample, x.sample) for x in inputs), 0.0).lower
        self.steps.append(Step(layer, tuple(x.step for x in inputs)))
        return Traced(len(self.steps), sample)


def _traced(*arguments: Any) -> list[Traced]:
    return [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Traced)]
