"""Helper-based adversarial training, HAT (Rade and Moosavi-Dezfooli, 2022)."""

import copy
from pathlib import Path

import torch
from torch import Tensor

from lightning_paf.attacks.base import Attack
from lightning_paf.functional.losses import cross_entropy, kl_divergence
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.weights import load_classifier
from lightning_paf.objectives.base import Objective, StepResult
from lightning_paf.objectives.standard import checked_smoothing
from lightning_paf.objectives.trades import attack_prediction, checked_weight


class HAT(Objective):
    """TRADES plus helper samples: images beyond the adversarial ones, with the labels that standard training gives.

    `CE(x, y) + beta * KL(p(x) || p(x')) + gamma * CE(x + scale * (x' - x), s(x'))`, where s(x') is the class that a
    network with standard training sees in the adversarial image. Helpers may leave [0, 1], as in the authors' code.
    Rade, Moosavi-Dezfooli, "Reducing Excessive Margin to Achieve a Better Accuracy vs. Robustness Trade-off", ICLR
    2022.

    Args:
        standard: Checkpoint of a training of the same network and activation with `--model.objective Natural`. Read
            when the network is built; only a training needs it.
        beta: Weight of the divergence; 2.5 on CIFAR-10, 3.5 with synthetic images.
        gamma: Weight of the helpers.
        scale: How far a helper lies from the image, in units of the adversarial perturbation; 3.5 is the default of the
            authors' code.
        label_smoothing: Share of the clean target that is spread evenly over all classes.

    Raises:
        ValueError: A negative weight, a scale below 1; a checkpoint that holds another network, or (where training
            begins) that does not exist.
    """

    def __init__(
        self,
        standard: Path,
        beta: float = 2.5,
        gamma: float = 0.5,
        scale: float = 3.5,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.standard = Path(standard)
        self.beta = checked_weight("beta", beta, 2.5)
        self.gamma = checked_weight("gamma", gamma, 0.5)
        if not scale >= 1:
            raise ValueError(
                f"scale leads from the image beyond its adversarial one, >= 1, but scale={scale}. "
                "Pass --model.objective.scale 3.5."
            )
        self.scale = scale
        self.label_smoothing = checked_smoothing(label_smoothing)
        # In a list it is no submodule: its weights belong into no checkpoint, no optimiser and no average.
        self._helper: list[Classifier] = []

    def bind(self, model: Classifier) -> None:
        """Load the network with standard training, where its file is there; commands that only test do without."""
        self._helper = []
        if self.standard.is_file():
            helper = copy.deepcopy(model).eval().requires_grad_(False)
            load_classifier(helper, self.standard)
            self._helper = [helper]

    def on_epoch_start(self, epoch: int, progress: float) -> None:
        """Refuse to train without helper labels."""
        self._checked_helper()

    def forward(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> StepResult:
        """Mean clean cross-entropy + beta * mean divergence + gamma * mean cross-entropy of the helpers."""
        x_adv = attack_prediction(model, x, attack)
        helper = self._checked_helper().to(x.device)
        with torch.no_grad():
            y_helper = helper(x_adv).argmax(1)
        clean, adversarial, helped = model(x), model(x_adv), model(x + self.scale * (x_adv - x))
        natural = cross_entropy(clean, y, label_smoothing=self.label_smoothing).mean()
        divergence = kl_divergence(adversarial, clean.softmax(1)).mean()
        help_loss = cross_entropy(helped, y_helper).mean()
        logs = {
            "natural_loss": natural.detach(),
            "divergence": divergence.detach(),
            "helper_loss": help_loss.detach(),
        }
        return StepResult(natural + self.beta * divergence + self.gamma * help_loss, adversarial, logs, clean)

    def _checked_helper(self) -> Classifier:
        if not self._helper:
            raise ValueError(
                f"HAT needs a network with standard training, but there is no checkpoint {self.standard}. "
                "Train one with --model.objective Natural; pass --model.objective.standard RUN/checkpoints/last.ckpt."
            )
        return self._helper[0]
