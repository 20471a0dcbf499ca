"""The momentum attack on an ensemble of other networks."""

from collections.abc import Sequence
from contextlib import ExitStack
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from lightning_paf.attacks.catalogue.mi_fgsm import MIFGSM
from lightning_paf.attacks.digest import tensor_digest
from lightning_paf.functional.geometry import Bounds
from lightning_paf.nn.modes import Mode, frozen
from lightning_paf.types import Forward, PerExampleLoss, Radius


class EnsembleMIFGSM(MIFGSM):
    """A transfer attack: MI-FGSM on the weighted mean of the surrogates' logits (Dong et al. 2018, section 3.3).

    The attacked model is asked once, with one image (two in mode `train`), and only for its number of classes.

    Args:
        surrogates: Networks, images in [0, 1] to logits (N, K) of the same classes as those of the attacked model.
        weights: One for each surrogate; they are divided by their sum. Null for equal ones.
        eps: Largest change of a pixel in [0, 1].
        step_size: Length of a step; null for `eps / steps`.
        steps: Number of gradients.
        momentum: Share of the sum of gradients that a step keeps.
        mode: Whether the surrogates are in eval mode, or in train mode with their buffers protected.
        bounds: Smallest and largest pixel value; null for inputs without bounds.
        loss: What to increase: `(logits, y) -> (N,)`. Default: cross-entropy.

    Raises:
        ValueError: As for MI-FGSM; no surrogate; surrogates of different classes; weights that do not fit. In the call:
            a model with other classes.
    """

    fixed_loss = True

    def __init__(
        self,
        surrogates: Sequence[nn.Module],
        weights: Sequence[float] | None = None,
        eps: Radius = Fraction(16, 255),
        *,
        step_size: Radius | None = None,
        steps: int = 10,
        momentum: float = 1.0,
        mode: Mode = "eval",
        bounds: Bounds = (0.0, 1.0),
        loss: PerExampleLoss | None = None,
    ) -> None:
        super().__init__(eps, step_size=step_size, steps=steps, momentum=momentum, mode=mode, bounds=bounds, loss=loss)
        if not surrogates:
            raise ValueError("EnsembleMIFGSM got no surrogate. List at least one network.")
        weights = [1.0] * len(surrogates) if weights is None else list(weights)
        if len(weights) != len(surrogates) or not all(weight >= 0 for weight in weights) or not sum(weights) > 0:
            raise ValueError(
                f"{len(surrogates)} surrogates need as many weights, at least 0 and not all 0, but have {weights}. "
                "Correct them, or leave them out for equal ones."
            )
        classes = {_classes(net) for net in surrogates} - {None}
        if len(classes) > 1:
            found = " and ".join(sorted(map(str, classes)))
            raise ValueError(f"The surrogates have {found} classes. Use networks of the same data.")
        self.surrogates = list(surrogates)
        self.weights = [weight / sum(weights) for weight in weights]

    def describe(self) -> dict[str, Any]:
        """The threat model and the settings as plain values, for result files."""
        digests = [tensor_digest(net.state_dict().values()) for net in self.surrogates]
        return super().describe() | {"weights": self.weights, "surrogates": digests}

    def perturb(self, forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
        """Attack the ensemble."""
        with ExitStack() as stack:
            for net in self.surrogates:
                stack.enter_context(frozen(net.to(x.device), self.mode))
            self._check(forward, x[:1] if self.mode == "eval" else x[:2])
            return super().perturb(self._logits, x, y, loss)

    def _logits(self, x: Tensor) -> Tensor:
        """Weighted mean of the logits."""
        return torch.stack([weight * net(x) for weight, net in zip(self.weights, self.surrogates, strict=True)]).sum(0)

    @torch.no_grad()
    def _check(self, forward: Forward, x: Tensor) -> None:
        classes = [net(x).shape[1] for net in self.surrogates]
        attacked = forward(x).shape[1]
        if set(classes) != {attacked}:
            raise ValueError(
                f"The attacked model has {attacked} classes, its surrogates have {classes}. Use networks of its data."
            )


def _classes(net: nn.Module) -> int | None:
    """How many classes a network says that it has, itself or by its last linear layer."""
    linear = [layer.out_features for layer in net.modules() if isinstance(layer, nn.Linear)]
    classes: int | None = getattr(net, "num_classes", linear[-1] if linear else None)
    return classes
