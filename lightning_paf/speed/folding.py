"""Graph of a network with each BatchNorm folded into a convolution."""

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn

from lightning_paf.nn.activations import Activation
from lightning_paf.nn.equivalence import generators_kept, has_global_hooks, is_hooked
from lightning_paf.nn.sync_batch_norm import CpuSyncBatchNorm, CpuSyncBatchNorm2d

_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, CpuSyncBatchNorm2d)
_HOOKED = "A hook on the network, or on a part of several layers, would be lost."
_GRADIENT_CHANGES = {"data", "detach", "detach_", "register_hook", "requires_grad_", "set_data"}
"""Names of operations that change gradients but not values."""


class Folding:
    """Computes a model in eval mode with fewer operations.

    `net` is a graph of the model's layers, which it shares with the model. Only convolutions and linear layers are
    replaced by copies with separate weights, which include the following BatchNorm and which `refresh` updates. The
    model is not modified. Layers replaced and hooks registered later have no effect on the graph.

    Args:
        model: A network in eval mode.

    Raises:
        Exception: Any kind, if the network's `forward` cannot be traced: it depends on values of the images, writes to
            the network, creates tensors (which would become constants), uses a random generator, or changes gradients
            in a way that a graph does not record: an autograd function, a part without gradients, `detach`, a hook.
            Inside shared layers, all of these work.
    """

    def __init__(self, model: nn.Module) -> None:
        graph = _trace(model)
        modules = {node: model.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"}
        layers = {module: FoldedLayer(module) for module in modules.values() if _is_affine(module)}
        for norm, conv in _pairs(modules):
            if modules[conv] in layers:
                layers[modules[conv]].norm = modules[norm]
                norm.replace_all_uses_with(conv)
                graph.erase_node(norm)
                del modules[norm]
        self.layers = list(layers.values())
        self._model = model
        self._tensors: dict[str, str] = {}
        parts: dict[str, nn.Module | Tensor] = {}
        # Names without dots, since a layer can be part of another one, which an assignment would modify.
        for node in graph.nodes:
            if node.op == "call_module":
                layer = layers.get(modules[node])
                name = f"{node.target.replace('.', '_')}_{len(parts)}"
                parts[name] = modules[node] if layer is None else layer.copy
                node.target = name
            elif node.op == "get_attr":
                name = f"tensor_{len(parts)}"
                self._tensors[name], parts[name], node.target = node.target, torch.empty(0), name
        self.net = fx.GraphModule(parts, graph)

    @torch.no_grad()
    def refresh(self, autocast: bool = True) -> None:
        """Update all weights, without synchronising the device.

        Args:
            autocast: Store weights in the dtype of autocast, if it is enabled. False stores them in that of the model.
        """
        # By name, since moving a model to a device replaces its buffers.
        for name, path in self._tensors.items():
            self.net._buffers[name] = attrgetter(path)(self._model)
        for layer in self.layers:
            weight = layer.source.weight
            device = weight.device.type
            cast = autocast and torch.is_autocast_enabled(device)
            layer.refresh(torch.get_autocast_dtype(device) if cast else weight.dtype)


class FoldedLayer:
    """A convolution or linear layer with separate weights.

    Attributes:
        source: Original layer.
        norm: BatchNorm that is folded into it, if any.
        copy: Copy of the layer that shares all attributes but the parameters, which are buffers.
    """

    def __init__(self, source: nn.Module) -> None:
        self.source: Any = source
        self.norm: Any = None
        self.copy = copy.copy(source)
        self.copy._parameters = {}
        self.copy._buffers = {}

    def refresh(self, dtype: torch.dtype) -> None:
        """Compute the weights in at least single precision.

        They are updated in place if dtype and layout are unchanged.
        """
        weight, bias = self.source.weight, self.source.bias
        if self.norm is not None:
            weight, bias = self._folded()
        self._store("weight", weight, dtype)
        self._store("bias", bias, dtype)

    def _folded(self) -> tuple[Tensor, Tensor]:
        source, norm = self.source, self.norm
        wide = torch.promote_types(source.weight.dtype, torch.float32)
        scale = (norm.running_var.to(wide) + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight
        mean = norm.running_mean if source.bias is None else norm.running_mean - source.bias
        bias = -mean * scale if norm.bias is None else norm.bias - mean * scale
        return source.weight * scale.view(-1, 1, 1, 1), bias

    def _store(self, name: str, value: Tensor | None, dtype: torch.dtype) -> None:
        held = self.copy._buffers.get(name)
        if value is None:
            self.copy._buffers[name] = None
        elif held is not None and _layout(held) == (dtype, *_layout(value)[1:]):
            held.copy_(value)
        else:
            self.copy._buffers[name] = value.detach().to(dtype, copy=True)


def _trace(model: nn.Module) -> fx.Graph:
    """Trace `forward`, and restore all attributes of the model.

    They could otherwise keep proxies of tensors.
    """
    if is_hooked(model) or has_global_hooks():
        raise TypeError(_HOOKED)
    stores = [store for module in model.modules() for store in (vars(module), module._parameters, module._buffers)]
    contents = [dict(store) for store in stores]
    try:
        with torch.inference_mode(False), torch.enable_grad(), generators_kept(model) as used:
            graph = _Tracer().trace(model)
            if used():
                raise TypeError("The forward pass uses a random generator.")
    finally:
        written = [pair for pair in zip(stores, contents, strict=True) if not _same_objects(*pair)]
        for store, content in written:
            store.clear()
            store.update(content)
    if written:
        raise TypeError("The forward pass writes to the network.")
    return graph


def _same_objects(store: Mapping[str, object], content: Mapping[str, object]) -> bool:
    return store.keys() == content.keys() and all(store[name] is held for name, held in content.items())


class _Tracer(fx.Tracer):
    """Traces `forward` down to layers, including those of this package."""

    proxy_buffer_attributes = True  # record computations with buffers, not their current results

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        layer = isinstance(m, Activation | nn.Conv2d | nn.Linear | CpuSyncBatchNorm)
        return layer or getattr(m, "fx_leaf", False) or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if is_hooked(m) and not self.is_leaf_module(m, self.path_of_module(m)):
            raise TypeError(_HOOKED)
        # Not `forward`, which in a compiled module cannot be traced.
        return super().call_module(m, m._call_impl, args, kwargs)

    def create_node(
        self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *rest: Any, **more: Any
    ) -> fx.Node:
        # Gradients are enabled when tracing begins; autograd functions disable them in their forward passes.
        if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            raise TypeError("A part of the forward pass is an autograd function or runs without gradients.")
        if kind in ("call_method", "call_function") and _name(target, args) in _GRADIENT_CHANGES:
            raise TypeError(f"The forward pass replaces gradients ({_name(target, args)}).")
        return super().create_node(kind, target, args, kwargs, *rest, **more)

    def get_fresh_qualname(self, prefix: str) -> NoReturn:
        raise TypeError("A tensor that the forward pass creates would become a constant.")


def _name(target: Any, args: tuple[Any, ...]) -> str:
    """Name of a method, a function or a read attribute."""
    return str(args[1]) if target is getattr else getattr(target, "__name__", str(target))


def _pairs(modules: Mapping[fx.Node, nn.Module]) -> list[tuple[fx.Node, fx.Node]]:
    """Pairs of a BatchNorm call and the preceding convolution call.

    The convolution must have no other use.
    """
    calls = Counter(modules.values())
    found = []
    for node, norm in modules.items():
        if type(norm) not in _NORMS or norm.running_mean is None or is_hooked(norm):
            continue
        source = node.all_input_nodes[0]
        conv = modules.get(source)
        if isinstance(conv, nn.Conv2d) and calls[conv] == 1 and len(source.users) == 1:
            found.append((node, source))
    return found


def _is_affine(module: nn.Module) -> bool:
    """Whether a layer is affine in its weight and bias, and depends on nothing else."""
    if not isinstance(module, nn.Conv2d | nn.Linear) or is_hooked(module):
        return False
    if module._parameters.keys() != {"weight", "bias"} or module._buffers or module._modules:
        return False
    return type(module) in (nn.Conv2d, nn.Linear) or _is_affine_subclass(module)


@torch.no_grad()
def _is_affine_subclass(layer: nn.Conv2d | nn.Linear) -> bool:
    """Test at random weights whether a subclass is affine.

    It could, for example, standardise its weights.
    """
    probe = copy.copy(layer)
    probe._parameters = {}
    generator = torch.Generator(layer.weight.device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=layer.weight.device) + 0.5

    def output(weight: Tensor, bias: Tensor) -> Tensor:
        probe._buffers = {"weight": weight, "bias": bias}
        result: Tensor = probe(x)
        return result

    scale, shift = draw(len(layer.weight)), draw(len(layer.weight))
    weight, bias = draw(*layer.weight.shape), draw(len(layer.weight))
    rows = (-1, *[1] * (weight.dim() - 1))
    if isinstance(layer, nn.Conv2d):
        side = max(size * gap for size, gap in zip(layer.kernel_size, layer.dilation, strict=True)) + 1
        x = draw(1, layer.in_channels, side, side) - 1
    else:
        x = draw(1, layer.in_features) - 1
    with torch.autocast(x.device.type, enabled=False):
        found = output(weight * scale.view(rows), bias * scale + shift)
        expected = output(weight, bias) * scale.view(rows[:-1]) + shift.view(rows[:-1])
    return torch.allclose(found, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max()))


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    """Properties that must not change for values to be written in place."""
    return tensor.dtype, tensor.device, tensor.shape, tensor.stride()
