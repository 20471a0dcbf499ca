"""Interval bounds forward, and linear bounds backward, through a network."""

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from lightning_paf.nn.bounds.interval import Interval, rounding_unit
from lightning_paf.nn.bounds.layers.pointwise import along
from lightning_paf.nn.bounds.lines import Lines
from lightning_paf.nn.bounds.network import Network, UnboundedError
from lightning_paf.nn.bounds.region import Box, Region, dot

Bounds = list[Interval]
"""Bounds of the images and of every step."""

Tighten = Callable[[Bounds, int], Interval]
"""Returns tighter bounds of a step, whose bounds are the last ones so far."""


def propagate(network: Network, region: Region, unit: float, tighten: Tighten | None = None) -> Bounds:
    """Bound every step by interval arithmetic.

    Args:
        network: The network.
        region: The set of images.
        unit: Relative rounding error of one operation; 0 ignores rounding, and is differentiable.
        tighten: Improves the bounds of the inputs of activations.
    """
    read = {number for activation in network.activations for number in network.steps[activation - 1].inputs}
    bounds = [region.interval()]
    for number, step in enumerate(network.steps, 1):
        bounds.append(step.layer.interval(tuple(bounds[i] for i in step.inputs), unit))
        if tighten is not None and number in read:
            bounds[-1] = bounds[-1].intersect(tighten(bounds, number))
    return bounds


def check_logits(network: Network, x: Tensor, logits: Tensor) -> None:
    """Check that the graph computes the logits of the model, up to rounding.

    A graph does not record everything, such as random numbers and the size of the batch.

    Args:
        network: The graph.
        x: Images (N, C, H, W).
        logits: Those of the model, (N, classes).

    Raises:
        UnboundedError: It computes others.
    """
    low, high = propagate(network, Box(x, x), rounding_unit(x.dtype))[network.output]
    if bool(((logits < low) | (logits > high)).any()):
        raise UnboundedError("one whose graph by torch.fx computes other logits than the model")


def margin_weights(y: Tensor, classes: int, like: Tensor) -> Tensor:
    """Weights (classes - 1, N, classes) of the label's logit minus each other one."""
    if classes < 2:
        raise ValueError(f"A network must have at least 2 logits for margins, got {classes}. Pass such a network.")
    eye = torch.eye(classes, dtype=like.dtype, device=like.device)
    return torch.stack([eye[y] - eye[(y + shift) % classes] for shift in range(1, classes)])


def lower_bound(
    network: Network,
    region: Region,
    bounds: Sequence[Interval],
    start: int,
    weights: Tensor,
    unit: float,
    relaxed: Mapping[int, Lines],
    stop: Collection[int] = (),
) -> Tensor:
    """Bound weighted sums of the values of a step by backward linear propagation.

    Zhang et al., "Efficient Neural Network Robustness Certification with General Activation Functions", 2018.

    Args:
        network: The network.
        region: The set of images.
        bounds: Bounds of the images and of the steps before `start`.
        start: Number of the step.
        weights: (K, N or 1, ...).
        unit: As in `propagate`.
        relaxed: Lines of activations before `start`; others have their default lines.
        stop: Steps whose bounds end the propagation.

    Returns:
        (K, N), float64.
    """
    found: dict[int, Tensor] = {start: weights}
    constant = size = torch.zeros((), dtype=torch.float64)
    for number in range(start, 0, -1):
        if number not in found:
            continue
        step, current = network.steps[number - 1], found.pop(number)
        if number in stop:
            constant = constant + Box(*bounds[number]).minimum(current, unit)
            continue
        inputs = tuple(bounds[i] for i in step.inputs)
        if number in relaxed:
            result = along(relaxed[number], current, inputs[0], unit)
        else:
            result = step.layer.backward(current, inputs, unit)
        constant, size = constant + result.constant, size + result.size
        for source, moved in zip(step.inputs, result.weights, strict=True):
            if source in found:
                moved = found[source] + moved
                size = size + (2 * dot(moved.abs(), bounds[source].magnitude)[0] if unit else 0.0)
            found[source] = moved
    least = constant + region.minimum(found[0], unit) if 0 in found else constant
    return least - unit * size
