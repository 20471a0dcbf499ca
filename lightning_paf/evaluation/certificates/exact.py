"""Exact decision of robustness by mixed-integer programming, for small ReLU networks."""

import copy
import time
from dataclasses import dataclass
from enum import Enum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_paf.functional.geometry import geometry_of
from lightning_paf.functional.predictions import misclassified
from lightning_paf.nn.classifier import Classifier

_AFFINE = (nn.AvgPool2d, nn.BatchNorm2d, nn.Conv2d, nn.Dropout, nn.Flatten, nn.Identity, nn.Linear)
_TOLERANCE = 1e-5  # of a margin; far above the tolerance of the solver's constraints

Layer = tuple[Tensor, Tensor]
"""Weight (out, in) and bias (out,) of an affine map."""
Box = tuple[Tensor, Tensor]
"""Lower and upper ends (n,)."""


class Verdict(Enum):
    """Decision about one image."""

    PROVEN = "proven"
    VIOLATED = "violated"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Decision:
    """Verdict about one image.

    Attributes:
        verdict: Whether every image of the box is classified correctly.
        witness: Misclassified image (1, C, H, W) of the box if it is violated, in the precision of the given image.
    """

    verdict: Verdict
    witness: Tensor | None = None


@torch.no_grad()
def decide(model: nn.Module, x: Tensor, y: Tensor, eps: float, time_limit: float = 60.0) -> Decision:
    """Decide whether an image within `eps` (linf) and [0, 1] is misclassified.

    The smallest margin to each other class is a mixed-integer programme (Tjeng, Xiao, Tedrake 2019) with one binary
    variable for every unit whose sign is open within the bounds of a linear relaxation (CROWN, Zhang et al. 2018). A
    forward pass in float64 checks the witness. Smallest margins between 0 and 1e-5 are undecided, since the solver
    has tolerances.

    Args:
        model: Chain of affine layers and ReLU: `nn.Sequential`, or `Classifier` with one; evaluated in eval mode.
        x: One image (1, C, H, W) in [0, 1], on the CPU.
        y: Its label (1,), int64.
        eps: Radius, in units of pixels.
        time_limit: Approximate seconds after which the image is undecided.

    Raises:
        ValueError: Several images; a layer that is neither affine nor ReLU.
    """
    if len(x) != 1:
        raise ValueError(f"x must be one image, got {len(x)}. Pass one at a time.")
    end, exact, image = time.perf_counter() + time_limit, copy.deepcopy(model).double().eval(), x.double()
    layers = affine_layers(exact, image)
    box = (image - eps).clamp(0, 1).flatten(), (image + eps).clamp(0, 1).flatten()
    bounds = preactivation_bounds(layers[:-1], box)
    weight, bias = layers[-1]
    verdict = Verdict.PROVEN
    for target in exact(image)[0].argsort(descending=True).tolist():
        margin = weight[y] - weight[target], bias[y] - bias[target]
        if target == int(y) or lower_bound(margin, layers[:-1], bounds, box).item() > _TOLERANCE:
            continue
        solution, excluded = _solve([*layers[:-1], margin], bounds, box, max(end - time.perf_counter(), 0.01))
        if solution is not None:
            witness = geometry_of("linf").returns(x, eps, (0.0, 1.0))(torch.from_numpy(solution).to(x).view_as(x))
            if bool(misclassified(exact(witness.double()), y)):
                return Decision(Verdict.VIOLATED, witness)
        if not excluded:
            verdict = Verdict.UNDECIDED
    return Decision(verdict)


def affine_layers(model: nn.Module, image: Tensor) -> list[Layer]:
    """Affine maps between the ReLUs of a chain, for flattened images like `image` (1, C, H, W)."""
    parts: list[list[nn.Module]] = [[]]
    for module in _modules(model):
        if isinstance(module, nn.ReLU):
            parts.append([])
        elif isinstance(module, _AFFINE):
            parts[-1].append(module)
        else:
            raise ValueError(
                f"Layers must be affine or ReLU for an exact decision, got {type(module).__name__}. Pass a plain chain."
            )
    layers = []
    for part in parts:
        net = nn.Sequential(*part)
        basis = torch.eye(image[0].numel(), dtype=image.dtype).view(-1, *image.shape[1:])
        zero = net(torch.zeros_like(image))
        layers.append(((net(basis) - zero).flatten(1).T, zero.flatten()))
        image = zero
    return layers


def preactivation_bounds(layers: list[Layer], box: Box) -> list[Box]:
    """Bounds before each ReLU, slightly widened for rounding."""
    bounds: list[Box] = []
    for weight, bias in layers:
        low = lower_bound((weight, bias), layers[: len(bounds)], bounds, box)
        high = -lower_bound((-weight, -bias), layers[: len(bounds)], bounds, box)
        bounds.append((low - 1e-9 * (1 + low.abs()), high + 1e-9 * (1 + high.abs())))
    return bounds


def lower_bound(last: Layer, layers: list[Layer], bounds: list[Box], box: Box) -> Tensor:
    """Lower bounds (out,) of an affine map after hidden layers, by backward linear relaxation."""
    weight, bias = last
    for (inner, shift), (low, high) in zip(reversed(layers), reversed(bounds), strict=True):
        above = high.clamp_min(0) / (high.clamp_min(0) - low.clamp_max(0)).clamp_min(1e-300)
        below, negative = (high > -low).to(low.dtype), weight.clamp_max(0)
        bias = bias - negative @ (above * low.clamp_max(0))
        weight = weight.clamp_min(0) * below + negative * above
        weight, bias = weight @ inner, bias + weight @ shift
    return bias + weight.clamp_min(0) @ box[0] + weight.clamp_max(0) @ box[1]


def _solve(
    layers: list[Layer], bounds: list[Box], box: Box, seconds: float
) -> tuple[NDArray[np.float64] | None, bool]:
    """Look for a point of the box with a margin of at most the tolerance; whether none exists.

    The variables are the pixels, then the outputs and the states (on or off) of each hidden layer.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    sizes = [len(box[0]), *(len(bias) for _, bias in layers[:-1])]
    first = [0, *np.cumsum([sizes[0], *(2 * size for size in sizes[1:])])]
    low, high, kind = (np.zeros(first[-1]) for _ in range(3))
    low[: sizes[0]], high[: sizes[0]] = (end.numpy() for end in box)
    constraints, before = [], slice(0, sizes[0])
    for number, ((weight, bias), ends) in enumerate(zip(layers, bounds, strict=False)):
        off, on = ends[0].clamp_max(0).numpy(), ends[1].clamp_min(0).numpy()
        units, states = (slice(first[number + 1] + k * len(off), first[number + 1] + (k + 1) * len(off)) for k in (0, 1))
        high[units], low[states], high[states], kind[states] = on, ends[0].numpy() >= 0, ends[1].numpy() > 0, 1
        rows = np.zeros((3, len(off), len(low)))
        rows[:2, :, before], rows[:, :, units] = -weight.numpy(), np.eye(len(off))
        rows[1, :, states], rows[2, :, states] = np.diag(-off), np.diag(-on)
        constraints += [
            LinearConstraint(rows[0], bias.numpy(), np.inf),  # output >= z
            LinearConstraint(rows[1], -np.inf, bias.numpy() - off),  # output <= z where on
            LinearConstraint(rows[2], -np.inf, 0),  # output <= 0 where off
        ]
        before = units
    objective = np.zeros(len(low))
    objective[before] = layers[-1][0].numpy()
    constraints.append(LinearConstraint(objective, -np.inf, _TOLERANCE - layers[-1][1].item()))
    found = milp(
        objective,
        integrality=kind,
        bounds=Bounds(low, high),
        constraints=constraints,
        options={"time_limit": seconds, "mip_rel_gap": 1e9},  # the first point will do
    )
    return (None if found.x is None else found.x[: sizes[0]]), found.status == 2


def _modules(model: nn.Module) -> list[nn.Module]:
    """Layers of a chain, in order."""
    if isinstance(model, Classifier):
        raise NotImplementedError
    if isinstance(model, nn.Sequential):
        return [layer for part in model for layer in _modules(part)]
    return [model]
