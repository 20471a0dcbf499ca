"""Momentum iterative FGSM, on the attacked model or on an ensemble of surrogates."""

from collections.abc import Sequence
from contextlib import ExitStack
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from lightning_paf.attacks.base import Attack, loss_and_gradient, radius_text, unless_infinite
from lightning_paf.functional.geometry import geometry_of, per_example
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.modes import frozen
from lightning_paf.types import Forward, PerExampleLoss, Radius
from lightning_paf.utils.hashing import weights_fingerprint


class MIFGSM(Attack):
    """Momentum iterative FGSM, a transfer attack (Dong et al. 2018).

    Its signed steps follow a decaying sum of normalised gradients.

    Every gradient is divided by its mean absolute value, as in the authors' code. (The l1 norm of the paper leads to
    the same signs.) Without momentum and with one step it is FGSM.

    Args:
        eps: Largest change of a pixel in [0, 1]: `16/255` in the paper.
        step_size: Length of a step; null for `eps / steps`.
        steps: Number of gradients.
        momentum: Factor of the sum at each step.
        **options: Further options of `Attack`, except `norm`.

    Raises:
        ValueError: `steps` is below 1, `step_size` is not positive, or `momentum` is negative; see also `Attack`.
    """

    settings = ("step_size", "steps", "momentum")

    def __init__(
        self,
        eps: Radius = Fraction(16, 255),
        *,
        step_size: Radius | None = None,
        steps: int = 10,
        momentum: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(eps, norm="linf", **options)
        self.step_size, self.steps, self.momentum = step_size, steps, momentum
        self.require(steps=1, momentum=0)
        if step_size is not None:
            self.require_length("step_size")

    def describe(self) -> dict[str, Any]:
        """The threat model and the settings as plain values, for result files."""
        step = "eps / steps" if self.step_size is None else radius_text(self.step_size)
        return super().describe() | {"step_size": step}

    def perturb(self, forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
        """Run `steps` steps from the image."""
        step_size = self.radius / self.steps if self.step_size is None else float(self.step_size)
        back, x_adv, direction = geometry_of("linf").returns(x, self.radius, self.bounds), x, torch.zeros_like(x)
        for _ in range(self.steps):
            values, gradient = loss_and_gradient(forward, x_adv, y, loss)
            mean = gradient.flatten(1).abs().mean(1).clamp_min(torch.finfo(x.dtype).tiny)
            direction = self.momentum * direction + gradient / per_example(mean, x)
            x_adv = back(x_adv + step_size * unless_infinite(values, direction.sign()))
        return x_adv


class EnsembleMIFGSM(MIFGSM):
    """Transfer attack with MI-FGSM on an ensemble (Dong et al. 2018, section 3.3).

    It attacks the weighted mean of the surrogates' logits.

    It calls the attacked model once, with one image (two in mode `train`), to compare the numbers of classes.

    Args:
        surrogates: Networks, images in [0, 1] to logits (N, K) of the same classes as those of the attacked model.
        weights: One for each surrogate, relative to their sum. Null for equal ones.
        eps: Largest change of a pixel in [0, 1].
        **options: Further options of `MIFGSM`; `mode` concerns the surrogates.

    Raises:
        ValueError: `surrogates` is empty, `weights` do not match them, or numbers of classes differ; see also `MIFGSM`.
    """

    fixed_loss = True

    def __init__(
        self,
        surrogates: Sequence[nn.Module],
        weights: Sequence[float] | None = None,
        eps: Radius = Fraction(16, 255),
        **options: Any,
    ) -> None:
        super().__init__(eps, **options)
        if not surrogates:
            raise ValueError("surrogates must hold at least one network, got none. Pass at least one.")
        _check_classes([net.num_classes for net in surrogates if isinstance(net, Classifier)])
        weights = [1.0] * len(surrogates) if weights is None else list(weights)
        if len(weights) != len(surrogates) or not all(weight >= 0 for weight in weights) or not sum(weights) > 0:
            raise ValueError(
                f"weights must be {len(surrogates)} numbers, one for each surrogate, at least 0 and not all 0, got "
                f"{weights}. Pass null for equal ones."
            )
        self.surrogates = list(surrogates)
        self.weights = [weight / sum(weights) for weight in weights]

    @property
    def aims_by_loss(self) -> bool:
        """Always, since the loss is that of the surrogates."""
        return True

    def describe(self) -> dict[str, Any]:
        """The threat model and the settings as plain values, for result files."""
        digests = [weights_fingerprint(net)[:16] for net in self.surrogates]
        return super().describe() | {"weights": self.weights, "surrogates": digests}

    def perturb(self, forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
        """Attack the ensemble."""
        with ExitStack() as stack:
            for net in self.surrogates:
                stack.enter_context(frozen(net.to(x.device), self.mode))
            with torch.no_grad():
                few = x[:1] if self.mode == "eval" else x[:2]
                _check_classes([*(net(few).shape[1] for net in self.surrogates), forward(few).shape[1]])
            return super().perturb(self._logits, x, y, loss)

    def _logits(self, x: Tensor) -> Tensor:
        """Weighted mean of the logits."""
        return torch.stack([weight * net(x) for weight, net in zip(self.weights, self.surrogates, strict=True)]).sum(0)


def _check_classes(classes: Sequence[int]) -> None:
    if len(set(classes)) > 1:
        raise ValueError(
            f"Surrogates and attacked model must have the same number of classes, got {classes}. Pass networks of the "
            "same data."
        )
