"""Exact decision for small ReLU networks by mixed-integer programming."""

import copy
import time
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import one_hot

from lightning_paf.evaluation.certificates.activations import layer_bounds
from lightning_paf.evaluation.certificates.chain import Layer, affine_layers
from lightning_paf.functional.geometry import geometry_of
from lightning_paf.functional.predictions import misclassified
from lightning_paf.nn.bounds.interval import Interval

_TOLERANCE = 1e-5
"""Largest margin of a solution, far above the tolerance of constraints."""

_INFEASIBLE = 2  # status of `milp`


class Decision(Enum):
    """Decision about one image."""

    PROVEN = "proven"
    VIOLATED = "violated"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class ExactResult:
    """Decision about one image and its witness.

    Attributes:
        decision: Whether the network classifies every image of the box correctly.
        witness: Misclassified image (1, C, H, W) of the box if it does not, in the precision of the given image.
    """

    decision: Decision
    witness: Tensor | None = None


@torch.no_grad()
def decide(model: nn.Module, x: Tensor, y: Tensor, eps: float, time_limit: float = 60.0) -> ExactResult:
    """Decide whether an image within `eps` (linf) and [0, 1] is misclassified.

    Whether the margin to another class can be negative is a mixed-integer programme (Tjeng, Xiao, Tedrake 2019). It has
    one binary variable for each unit whose sign is open. A forward pass in float64 checks every witness. An image whose
    smallest margin lies within 1e-5 of 0 can remain undecided, since the solver has tolerances.

    Args:
        model: See `affine_layers`; its parameters are copied to float64 on the CPU.
        x: One image (1, C, H, W) in [0, 1], on the CPU.
        y: Its label (1,), int64.
        eps: Radius, in units of pixels.
        time_limit: Approximate seconds after which the image is undecided.

    Raises:
        ValueError: Several images; a layer that is neither affine nor ReLU.
    """
    if len(x) != 1:
        raise ValueError(f"x must be one image, got {len(x)}. Pass one at a time.")
    end, exact, image = time.perf_counter() + time_limit, copy.deepcopy(model).cpu().double().eval(), x.double()
    margins = _margins(exact(image), y)
    *hidden, (weight, bias) = affine_layers(nn.Sequential(exact, margins), image)
    box = Interval((image - eps).clamp(0, 1), (image + eps).clamp(0, 1))
    *bounds, least = layer_bounds(nn.Sequential(exact, margins, nn.ReLU()), *box)
    decision = Decision.PROVEN
    for target in exact(image)[0].argsort(descending=True).tolist():
        if target == int(y) or least.lower[0, target] > _TOLERANCE:
            continue
        margin = weight[target, None], bias[target, None]
        found, excluded = _solve(hidden, bounds, box, margin, max(end - time.perf_counter(), 0.01))
        if found is not None:
            witness = geometry_of("linf").returns(x, eps, (0.0, 1.0))(torch.from_numpy(found).to(x).view_as(x))
            if bool(misclassified(exact(witness.double()), y)):
                return ExactResult(Decision.VIOLATED, witness)
        if not excluded:
            decision = Decision.UNDECIDED
    return ExactResult(decision)


def _margins(logits: Tensor, y: Tensor) -> nn.Linear:
    """Layer from logits to the difference of the label's logit and each."""
    classes = logits.shape[1]
    layer = nn.Linear(classes, classes, bias=False, dtype=logits.dtype)
    layer.weight.copy_(one_hot(y, classes) - torch.eye(classes))
    return layer


def _solve(
    hidden: list[Layer], bounds: list[Interval], box: Interval, margin: Layer, seconds: float
) -> tuple[NDArray[np.float64] | None, bool]:
    """Look for a violation in the box, and return whether none exists.

    The variables are the pixels, then the outputs and the states (0 off, 1 on) of the units of each hidden layer.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    pixels = box.lower.numel()
    first = [*accumulate((2 * len(bias) for _, bias in hidden), initial=pixels)]
    low, high, integer = (np.zeros(first[-1]) for _ in range(3))
    low[:pixels], high[:pixels] = (end.flatten().numpy() for end in box)
    inputs, constraints = slice(0, pixels), []
    for start, (weight, shift), ends in zip(first, hidden, bounds, strict=False):
        units = len(shift)
        outputs, states = slice(start, start + units), slice(start + units, start + 2 * units)
        least, most = (end.flatten().numpy() for end in (ends.lower.clamp_max(0), ends.upper.clamp_min(0)))
        bias = shift.numpy()
        high[outputs], integer[states] = most, 1
        low[states], high[states] = least == 0, most > 0
        above, below, zero = np.zeros((3, units, len(low)))
        above[:, inputs] = below[:, inputs] = -weight.numpy()
        above[:, outputs] = below[:, outputs] = zero[:, outputs] = np.eye(units)
        below[:, states], zero[:, states] = np.diag(-least), np.diag(-most)
        constraints += [
            LinearConstraint(above, bias, np.inf),  # at least the pre-activation
            LinearConstraint(below, -np.inf, bias - least),  # at most the pre-activation, if on
            LinearConstraint(zero, -np.inf, 0),  # zero, if off
        ]
        inputs = outputs
    objective = np.zeros(len(low))
    objective[inputs] = margin[0].numpy()
    constraints.append(LinearConstraint(objective, -np.inf, _TOLERANCE - margin[1].item()))
    options = {"time_limit": seconds, "mip_rel_gap": 1e9}  # the first point is enough
    found = milp(objective, integrality=integer, bounds=Bounds(low, high), constraints=constraints, options=options)
    return (None if found.x is None else found.x[:pixels]), found.status == _INFEASIBLE
