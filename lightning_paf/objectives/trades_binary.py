"""The two-class form of TRADES, with the hinge loss (Zhang et al., 2019)."""

import torch
from torch import Tensor
from torch.nn.functional import one_hot, relu

from lightning_paf.attacks.base import Attack
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.modes import frozen
from lightning_paf.objectives.base import Objective, StepResult


class BinaryTRADES(Objective):
    """`phi(y f(x)) + max phi(f(x) f(x') / lam)` for two classes, phi being the hinge and y -1 or +1.

    f is the second logit minus the first. This is the form that the theory of Zhang et al. (2019) is about, and that
    their code trains on the digits 1 and 3. Here a SMALLER `lam` means more robustness, unlike `TRADES.beta`.

    Args:
        lam: The paper's lambda; their code uses 5 and calls it beta.

    Raises:
        ValueError: A weight that is not positive; a network without exactly two classes.
    """

    def __init__(self, lam: float = 5.0) -> None:
        super().__init__()
        if not lam > 0:
            raise ValueError(f"lam must be a divisor, > 0, got {lam}. Pass --model.objective.lam 5.")
        self.lam = lam

    def bind(self, model: Classifier) -> None:
        """Refuse other numbers of classes."""
        if model.num_classes != 2:
            raise ValueError(
                f"BinaryTRADES is for two classes, but the data have {model.num_classes}. "
                "Pass --model.objective TRADES."
            )

    def forward(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> StepResult:
        """Mean hinge of the clean images + mean hinge of the disagreement."""
        with torch.no_grad(), frozen(model, attack.mode):
            reference = _score(model(x))
        x_adv = attack(model, x, reference, loss=self.disagreement)
        clean, adversarial = model(x), model(x_adv)
        shares = y if y.is_floating_point() else one_hot(y, 2).to(clean.dtype)
        natural = (shares * torch.stack([_hinge(-_score(clean)), _hinge(_score(clean))], 1)).sum(1).mean()
        robust = self.disagreement(adversarial, _score(clean)).mean()
        logs = {
            "natural_loss": natural.detach(),
            "disagreement": robust.detach(),
        }
        return StepResult(natural + robust, adversarial, logs, clean)

    def disagreement(self, logits: Tensor, reference: Tensor) -> Tensor:
        """phi(f f' / lam), (N,), of logits (N, 2) and scores (N,)."""
        return _hinge(_score(logits) * reference / self.lam)


def _score(logits: Tensor) -> Tensor:
    return logits[:, 1] - logits[:, 0]


def _hinge(value: Tensor) -> Tensor:
    return relu(1 - value)
