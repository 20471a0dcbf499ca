"""Helper-based adversarial training, HAT (Rade and Moosavi-Dezfooli, 2022)."""

import copy
import math
from pathlib import Path

import torch
from torch import Tensor

from lightning_paf.attacks.base import Attack
from lightning_paf.functional.losses import cross_entropy, kl_divergence
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.weights import load_classifier
from lightning_paf.objectives.base import Objective, StepResult
from lightning_paf.objectives.checks import checked, checked_smoothing, checked_weight
from lightning_paf.objectives.trades import attack_prediction


class HAT(Objective):
    """HAT: TRADES plus helper samples beyond the adversarial images.

    `CE(x, y) + beta * KL(p(x) || p(x')) + gamma * CE(x + scale * (x' - x), s(x'))`, where s(x') is the class that a
    network with standard training predicts for the adversarial image. Helpers can leave [0, 1], as in the authors'
    code. Rade, Moosavi-Dezfooli, "Reducing Excessive Margin to Achieve a Better Accuracy vs. Robustness Trade-off",
    ICLR 2022.

    Args:
        standard: Training checkpoint of the same network and activation with `--model.objective Natural`. It is read
            when the network is built, and needed for training only.
        beta: Weight of the divergence; 2.5 on CIFAR-10, 3.5 with synthetic images.
        gamma: Weight of the helpers.
        scale: Distance of a helper from the image, relative to that of the adversarial image; 2 in the authors'
            commands (`--h`).
        label_smoothing: Fraction of the clean target that is spread evenly over all classes.

    Raises:
        ValueError: A negative weight, a scale below 1; a checkpoint of another network or, when training starts, one
            that does not exist.
    """

    def __init__(
        self,
        standard: Path,
        beta: float = 2.5,
        gamma: float = 0.5,
        scale: float = 2.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.standard = Path(standard)
        self.beta = checked_weight("beta", beta, 2.5)
        self.gamma = checked_weight("gamma", gamma, 0.5)
        self.scale = checked("scale", scale, 1 <= scale < math.inf, "finite and >= 1", 2)
        self.label_smoothing = checked_smoothing(label_smoothing)
        # In a list it is no submodule: checkpoints, optimiser and weight averaging leave it out.
        self._helper: list[Classifier] = []

    def bind(self, model: Classifier) -> None:
        """Load the helper network if its file exists; only training requires it."""
        self._helper = []
        if self.standard.is_file():
            helper = copy.deepcopy(model).eval().requires_grad_(False)
            load_classifier(helper, self.standard)
            self._helper = [helper]

    def on_epoch_start(self, epoch: int, progress: float) -> None:
        """Check that the helper network is loaded."""
        self._checked_helper()

    def forward(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> StepResult:
        """Clean cross-entropy plus weighted divergence and helper cross-entropy."""
        x_adv = attack_prediction(model, x, attack)
        helper = self._checked_helper().to(x.device)
        with torch.no_grad():
            y_helper = helper(x_adv).argmax(1)
        clean, adversarial, helped = model(x), model(x_adv), model(x + self.scale * (x_adv - x))
        natural = cross_entropy(clean, y, label_smoothing=self.label_smoothing).mean()
        divergence = kl_divergence(adversarial, clean.softmax(1)).mean()
        help_loss = cross_entropy(helped, y_helper).mean()
        logs = {"natural_loss": natural, "divergence": divergence, "helper_loss": help_loss}
        return StepResult(natural + self.beta * divergence + self.gamma * help_loss, adversarial, logs, clean)

    def _checked_helper(self) -> Classifier:
        if not self._helper:
            raise ValueError(
                f"standard must be a checkpoint of standard training, got {self.standard}, which does not exist. Train "
                "one with --model.objective Natural. Pass --model.objective.standard RUN/checkpoints/last.ckpt."
            )
        return self._helper[0]
