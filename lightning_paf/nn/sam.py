"""Sharpness-aware minimisation around any optimiser (Foret et al. 2021)."""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

OptimizerOf = Callable[[Iterable[Any]], Optimizer]
"""Makes an optimiser of parameters or parameter groups."""


class SAM(Optimizer):
    """Any optimiser with the gradient at perturbed weights.

    A step computes the gradient g at the weights w, and then the gradient at `w + rho * g / |g|`, with the norm over
    all parameters. The base optimiser applies the second gradient to w, which is restored exactly. A step costs two
    forward and two backward passes, attacks included. Learning rates, states and checkpoints are those of the base.
    Foret, Kleiner, Mobahi, Neyshabur, "Sharpness-Aware Minimization for Efficiently Improving Generalization", ICLR
    2021.

    `step(closure)` evaluates the closure twice. `Task.optimizer_step` does so itself, by `perturbed`, so that gradient
    scaling in float16, clipping and hooks apply to the second gradient only. The scale of a gradient has no influence
    on the perturbation. On several devices the gradient, and so the perturbation, is that of the full batch.

    Args:
        params: Parameters or parameter groups.
        base: Optimiser that takes the steps.
        rho: Length of the perturbation in l2, >= 0; 0.05 in the paper.

    Attributes:
        evaluations: Evaluations of the closure per step.

    Raises:
        ValueError: A negative or infinite `rho`; a base that evaluates the closure itself, such as LBFGS.
    """

    evaluations = 2

    def __init__(
        self,
        params: Iterable[Any],
        base: OptimizerOf = lambda p: SGD(p, lr=0.1, momentum=0.9),
        rho: float = 0.05,
    ) -> None:
        if not 0 <= rho < math.inf:
            raise ValueError(f"rho must be finite and >= 0, got {rho}. Pass --model.optimizer.rho 0.05.")
        self.base = base(params)
        if hasattr(self.base, "evaluations") or _needs_closure(self.base):
            raise ValueError(
                f"base must step from one gradient, got {type(self.base).__name__}, which evaluates the closure "
                "itself. Pass --model.optimizer.base SGD."
            )
        self.rho = rho
        super().__init__(self.base.param_groups, self.base.defaults)
        self._share()
        self._evaluated_twice = False

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step of the base optimiser.

        Args:
            closure: Clears the gradients, computes the loss and its gradient, and returns the loss. It is evaluated at
                the weights and at the perturbed ones, unless it does that itself by `perturbed`. Without it, the
                present gradient is applied.

        Returns:
            The loss at the weights.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
                if not self._evaluated_twice:
                    with self.perturbed():
                        closure()
        self._evaluated_twice = False
        self.base.step()
        return loss

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """Perturb the weights along the present gradient inside a `with` block.

        A gradient that is zero or not finite, as after an overflow in float16, moves no weight.
        """
        weights = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in weights]).item()
        moved = list[tuple[Tensor, Tensor]]()
        try:
            with torch.no_grad():
                for weight in weights if 0 < norm < math.inf else ():
                    moved.append((weight, weight.clone()))
                    weight.add_(weight.grad, alpha=self.rho / norm)
            torch.clear_autocast_cache()  # it holds the rounded weights
            yield
        finally:
            with torch.no_grad():
                for weight, original in moved:
                    weight.copy_(original)
        self._evaluated_twice = True

    def state_dict(self) -> dict[str, Any]:
        """State of the base optimiser."""
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of the base optimiser."""
        self.base.load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        self.param_groups, self.state = self.base.param_groups, self.base.state


def _needs_closure(optimizer: Optimizer) -> bool:
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty
