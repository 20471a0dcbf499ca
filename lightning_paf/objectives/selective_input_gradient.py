"""A penalty on input gradients where the prediction does not depend on the image, half of J-SIGR (Liu et al., 2024)."""

from typing import Literal

from torch import Tensor

from lightning_paf.attacks.base import Attack
from lightning_paf.functional.input_gradient import input_gradient
from lightning_paf.functional.saliency import most_salient, perturbation_saliency
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.modes import buffers_kept, frozen
from lightning_paf.objectives.base import Objective
from lightning_paf.objectives.standard import Natural
from lightning_paf.objectives.wrapper import Regularised


class SelectiveInputGradient(Regularised):
    """An objective plus `weight` times how far the loss's gradient by the image departs from the saliency of pixels.

    The saliency of a pixel is how much the prediction changes when the image is blurred around it, measured in eval
    mode and without a gradient of its own. J-SIGR is this around `JacobianNorm`: Liu, Wu, Li, Boussaid, Bennamoun, Xie,
    Liang, "Jacobian norm with Selective Input Gradient Regularization for interpretable adversarial defense", Pattern
    Recognition 2024. Their code is not public; the forms and all constants are ours, after their abstract. The gradient
    is that of the network in training mode; the pass that it takes moves no statistics of BatchNorm. Each step takes
    `grid` ** 2 passes without a gradient for the saliency.

    Args:
        objective: What the term is added to; null for standard training.
        weight: Of the term.
        mode: `mask`: the squared gradient of log p_y at the pixels of least saliency. `match`: the squared distance of
            the absolute gradient, summed over channels, and the saliency, each divided by its sum.
        quantile: Share of the pixels, those of least saliency, whose gradient is penalised in mode `mask`; 0 penalises
            none, 1 is the input-gradient penalty of Ross and Doshi-Velez (2018) on log p_y.
        grid: Points in each direction at which the saliency is measured.
        window: Standard deviation of what is blurred, as a fraction of the image's height.
        blur: Standard deviation of the blur, as a fraction of the image's height.
        examples: Compute the term on this many images of each batch, which costs less and is right on average; null
            for all.

    Raises:
        ValueError: A negative weight, an unknown mode, or a number outside its range.
    """

    needs_double_backward = True
    name = "input_gradient"

    def __init__(
        self,
        objective: Objective | None = None,
        weight: float = 0.1,
        mode: Literal["mask", "match"] = "mask",
        quantile: float = 0.7,
        grid: int = 8,
        window: float = 0.125,
        blur: float = 0.125,
        examples: int | None = None,
    ) -> None:
        super().__init__(objective or Natural(), weight)
        if mode not in ("mask", "match"):
            raise ValueError(f"mode must be mask or match, got {mode!r}. Pass --model.objective.mode mask.")
        if not 0 <= quantile <= 1:
            raise ValueError(
                f"quantile must be a fraction of the pixels, in [0, 1], got {quantile}. "
                "Pass --model.objective.quantile 0.7."
            )
        for option, value in (("grid", grid), ("examples", 1 if examples is None else examples)):
            if value < 1:
                raise ValueError(f"{option} must be at least 1, got {value}. Pass --model.objective.{option} 8.")
        for option, share in (("window", window), ("blur", blur)):
            if not share > 0:
                raise ValueError(
                    f"{option} must be a fraction of the image's height, > 0, got {share}. "
                    f"Pass --model.objective.{option} 0.125."
                )
        self.mode = mode
        self.quantile = quantile
        self.grid, self.window, self.blur = grid, window, blur
        self.examples = examples

    def term(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> Tensor:
        """Mean over images of the squared departure."""
        x, y = x[: self.examples], y[: self.examples]
        with frozen(model):
            saliency = perturbation_saliency(model, x, self.grid, self.window, self.blur)
        with buffers_kept(model):
            gradient = input_gradient(model, x, y)
        if self.mode == "match":
            return (_shares(gradient.abs().sum(1)) - _shares(saliency)).square().sum((1, 2)).mean()
        return outside(gradient, most_salient(saliency, 1 - self.quantile))


def outside(gradient: Tensor, kept: Tensor) -> Tensor:
    """Mean squared length of gradients (N, C, H, W) at the pixels that are not among `kept`, bool (N, H, W)."""
    return (gradient * ~kept[:, None]).flatten(1).square().sum(1).mean()


def _shares(saliency: Tensor) -> Tensor:
    """Maps (N, H, W), at least 0, divided by their sums; zero maps stay."""
    total = saliency.sum((1, 2), keepdim=True)
    return saliency / total.where(total > 0, 1.0)
