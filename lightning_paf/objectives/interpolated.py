"""Interpolated adversarial training, IAT (Lamb et al., 2019)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_paf.attacks.base import Attack
from lightning_paf.functional.losses import cross_entropy
from lightning_paf.functional.mixup import draw_mixture
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.stages import changed_stage, stages
from lightning_paf.objectives.base import Objective, StepResult


class IAT(Objective):
    """Half the loss on mixtures of clean images, half on mixtures of adversarial images.

    The attack works on images that are not mixed. Either half draws its own share from Beta(alpha, alpha), its own
    permutation and its own layer, and passes through the network as a batch of its own. Lamb, Verma, Kawaguchi et al.,
    "Interpolated Adversarial Training: Achieving Robust Neural Networks without Sacrificing Too Much Accuracy", AISec
    2019 and Neural Networks 2022.

    Args:
        alpha: Of the Beta distribution: 1 for images, 2 for manifold mixup; 0 mixes nothing, which is adversarial
            training on half clean and half adversarial images.
        layers: Where to mix, one drawn each time: 0 is the image, k what leaves stage k. `[0, 1, 2]` for manifold
            mixup (Verma et al. 2019). Stages are found as `nn.stages` says.

    Raises:
        ValueError: A negative or tiny alpha; no layer or a negative one; in `bind`, a network with fewer stages.
    """

    def __init__(self, alpha: float = 1.0, layers: Sequence[int] = (0,)) -> None:
        super().__init__()
        if not (alpha == 0 or alpha >= 0.01):
            raise ValueError(
                f"alpha must be the parameter of a Beta distribution, at least 0.01, or 0 for no mixing, got {alpha}. "
                "Pass --model.objective.alpha 1."
            )
        if not layers or min(layers) < 0:
            raise ValueError(
                f"layers must be numbers of stages, 0 for the image, at least one of them, got {list(layers)}. "
                "Pass --model.objective.layers '[0]' or '[0, 1, 2]'."
            )
        self.alpha = alpha
        self.layers = tuple(layers)

    def bind(self, model: Classifier) -> None:
        """Refuse a network without the stages to mix after."""
        found = stages(model.net)
        if max(self.layers) > len(found):
            raise ValueError(
                f"layers={list(self.layers)} needs {max(self.layers)} stages, but {type(model.net).__name__} has "
                f"{len(found)} ({', '.join(found) or 'none'}). Pass --model.objective.layers '[0]' to mix images, or a "
                "network with stages."
            )

    def forward(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> StepResult:
        """Mean of the two mixed losses; the logits are those of the mixed adversarial images."""
        x_adv = attack(model, x, y)
        clean, _ = self.mixed(model, x, y)
        adversarial, logits = self.mixed(model, x_adv, y)
        logs = {"clean_loss": clean.detach(), "adversarial_loss": adversarial.detach()}
        return StepResult((clean + adversarial) / 2, logits, logs)

    def mixed(self, model: Classifier, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, a scalar, and the logits (N, num_classes) of a mixture of these images or of what they become."""
        mixture = draw_mixture(len(x), self.alpha, x.device)
        layer = self.layers[int(torch.randint(len(self.layers), ()))]
        if layer == 0:
            logits = model(mixture(x))
        else:
            with changed_stage(model.net, layer, mixture):
                logits = model.outputs(x).logits
        own, other = cross_entropy(logits, y), cross_entropy(logits, y[mixture.partners])
        return (mixture.share * own + (1 - mixture.share) * other).mean(), logits
