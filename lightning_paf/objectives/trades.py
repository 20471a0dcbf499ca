"""TRADES and its two-class form (Zhang et al., 2019)."""

import math

import torch
from torch import Tensor
from torch.nn.functional import one_hot, relu, softmax

from lightning_paf.attacks.base import Attack
from lightning_paf.functional.losses import cross_entropy, kl_divergence
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.modes import frozen
from lightning_paf.objectives.base import Objective, StepResult
from lightning_paf.objectives.checks import checked, checked_smoothing, checked_weight


class TRADES(Objective):
    """TRADES: clean cross-entropy plus `beta` times the KL divergence of predictions.

    The attack maximises KL(p(x) || p(x')) with p(x) computed once; the published recipe attacks in evaluation mode from
    a small Gaussian (`--model.attack.start gaussian`), for l2 with the attack `L2Ascent`. In the loss the gradient
    flows into both predictions. Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy",
    ICML 2019.

    Args:
        beta: Weight of the divergence, >= 0; the paper's 1/lambda. 6 for CIFAR-10, 5 in Wang et al. (2023).
        label_smoothing: Fraction of the clean target that is spread evenly over all classes.
        recompute_clean: Pass the clean images through the network a second time for the divergence, as the authors'
            code does. It only matters for dropout and BatchNorm, which then counts the clean batch twice.
    """

    def __init__(self, beta: float = 6.0, label_smoothing: float = 0.0, recompute_clean: bool = False) -> None:
        super().__init__()
        self.beta = checked_weight("beta", beta, 6)
        self.label_smoothing = checked_smoothing(label_smoothing)
        self.recompute_clean = recompute_clean

    def forward(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> StepResult:
        """Mean clean cross-entropy + beta * mean KL(clean || adversarial)."""
        x_adv = attack_prediction(model, x, attack)
        clean, adversarial = model(x), model(x_adv)
        natural = cross_entropy(clean, y, label_smoothing=self.label_smoothing).mean()
        reference = model(x) if self.recompute_clean else clean
        divergence = kl_divergence(adversarial, softmax(reference, 1)).mean()
        logs = {"natural_loss": natural, "divergence": divergence}
        return StepResult(natural + self.beta * divergence, adversarial, logs, clean)


def attack_prediction(model: Classifier, x: Tensor, attack: Attack) -> Tensor:
    """Inner maximisation of TRADES: images that maximise KL(p(x) || p(x'))."""
    with torch.no_grad(), frozen(model, attack.mode):
        target = softmax(model(x), 1)
    return attack(model, x, target, loss=kl_divergence)


class BinaryTRADES(Objective):
    """Two-class TRADES: `phi(y f(x)) + max phi(f(x) f(x') / lam)`.

    phi is the hinge, and y is -1 or +1.

    f is the second logit minus the first. This is the form that the theory of Zhang et al. (2019) is about, and that
    their code trains on the digits 1 and 3. Here a SMALLER `lam` means more robustness, unlike `TRADES.beta`.

    Args:
        lam: The paper's lambda, > 0; their code uses 5 and calls it beta.

    Raises:
        ValueError: In `bind`, a network without exactly two classes.
    """

    def __init__(self, lam: float = 5.0) -> None:
        super().__init__()
        self.lam = checked("lam", lam, 0 < lam < math.inf, "finite and > 0", 5)

    def bind(self, model: Classifier) -> None:
        """Check that the network has two classes."""
        if model.num_classes != 2:
            raise ValueError(
                f"The number of classes must be 2 for BinaryTRADES, got {model.num_classes}. "
                "Pass --model.objective TRADES."
            )

    def forward(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> StepResult:
        """Mean hinge of the clean images + mean hinge of the disagreement."""
        with torch.no_grad(), frozen(model, attack.mode):
            reference = _score(model(x))
        x_adv = attack(model, x, reference, loss=self.disagreement)
        clean, adversarial = model(x), model(x_adv)
        target = y if y.is_floating_point() else one_hot(y, 2).to(clean.dtype)
        natural = (target * torch.stack([_hinge(-_score(clean)), _hinge(_score(clean))], 1)).sum(1).mean()
        robust = self.disagreement(adversarial, _score(clean)).mean()
        return StepResult(natural + robust, adversarial, {"natural_loss": natural, "disagreement": robust}, clean)

    def disagreement(self, logits: Tensor, reference: Tensor) -> Tensor:
        """phi(f f' / lam), (N,), of logits (N, 2) and scores (N,)."""
        return _hinge(_score(logits) * reference / self.lam)


def _score(logits: Tensor) -> Tensor:
    return logits[:, 1] - logits[:, 0]


def _hinge(value: Tensor) -> Tensor:
    return relu(1 - value)
