"""Interpolated adversarial training, IAT (Lamb et al., 2019)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_paf.attacks.base import Attack
from lightning_paf.functional.losses import cross_entropy
from lightning_paf.functional.mixup import draw_mixture
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.stages import changed_stage, stages
from lightning_paf.objectives.base import Objective, StepResult
from lightning_paf.objectives.checks import checked


class IAT(Objective):
    """IAT: mean of the mixup losses of clean and adversarial images.

    The attack uses unmixed images. Each half draws a separate coefficient from Beta(alpha, alpha), permutation and
    layer, and passes through the network as a separate batch. Lamb, Verma, Kannala, Bengio, "Interpolated Adversarial
    Training: Achieving Robust Neural Networks without Sacrificing Too Much Accuracy", AISec 2019 (extended: Lamb,
    Verma, Kawaguchi et al., Neural Networks 2022).

    Args:
        alpha: Parameter of the Beta distribution: 1 for images, 2 for manifold mixup; 0 mixes nothing, which is
            adversarial training on half clean and half adversarial images.
        layers: Layers to mix at, one drawn at random each time: 0 is the image, k the output of stage k. `[0, 1, 2]`
            for manifold mixup (Verma et al. 2019). `nn.stages` defines the stages.

    Raises:
        ValueError: A negative or tiny alpha; no layer or a negative one; in `bind`, a network with fewer stages.
    """

    def __init__(self, alpha: float = 1.0, layers: Sequence[int] = (0,)) -> None:
        super().__init__()
        valid = alpha == 0 or 0.01 <= alpha < math.inf
        self.alpha = checked("alpha", alpha, valid, "finite and at least 0.01, or 0 for no mixing", 1)
        valid = min(layers, default=-1) >= 0
        self.layers = checked("layers", [*layers], valid, "a list of stage numbers, 0 for the image", "'[0]'")

    def bind(self, model: Classifier) -> None:
        """Check that the network has enough stages."""
        found = stages(model.net)
        if max(self.layers) > len(found):
            raise ValueError(
                f"layers must be at most {len(found)} ({type(model.net).__name__} has the stages "
                f"{', '.join(found) or 'none'}), got {self.layers}. Pass --model.objective.layers '[0]' to mix images."
            )

    def forward(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> StepResult:
        """Mean of both mixed losses, and logits of the mixed adversarial images."""
        x_adv = attack(model, x, y)
        clean, _ = self.mixed(model, x, y)
        adversarial, logits = self.mixed(model, x_adv, y)
        return StepResult((clean + adversarial) / 2, logits, {"clean_loss": clean, "adversarial_loss": adversarial})

    def mixed(self, model: Classifier, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mixup loss, a scalar, and logits (N, num_classes), mixed at a random layer."""
        mixture = draw_mixture(len(x), self.alpha, x.device)
        layer = self.layers[int(torch.randint(len(self.layers), ()))]
        if layer == 0:
            logits = model(mixture(x))
        else:
            with changed_stage(model.net, layer, mixture):
                logits = model.outputs(x).logits
        own, other = cross_entropy(logits, y), cross_entropy(logits, y[mixture.partners])
        return (mixture.coefficient * own + (1 - mixture.coefficient) * other).mean(), logits
