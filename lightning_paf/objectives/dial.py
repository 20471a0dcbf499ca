"""Domain-invariant adversarial learning, DIAL (Levi et al., 2022)."""

from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import softmax

from lightning_paf.attacks.base import Attack
from lightning_paf.functional.gradient_reversal import reversal_schedule, reverse_gradient
from lightning_paf.functional.losses import cross_entropy, kl_divergence
from lightning_paf.nn.classifier import Classifier
from lightning_paf.objectives.base import Objective, StepResult
from lightning_paf.objectives.checks import checked, checked_weight
from lightning_paf.objectives.trades import attack_prediction


class DIAL(Objective):
    """DIAL: clean and adversarial loss on domain-invariant features.

    A second head, the domain head, is trained to separate features of clean and adversarial images. The network before
    it receives the head's gradient with the opposite sign, times a factor that grows from 0 to 1 over the training,
    once per epoch. The head is part of the objective: training checkpoints contain it, the classifier does not. Levi,
    Attias, Kontorovich, "Domain Invariant Adversarial Learning", TMLR 2022. Subclasses define the adversarial loss.

    Args:
        beta: Weight of the adversarial loss, >= 0.
        domain_weight: Weight of the head's loss, >= 0; 0 leaves the two other terms.
        hidden: Widths of the head's hidden layers, at least 1; `[]` for a linear head.
        batch_norm: Normalise the hidden layers of the head, separately for clean and adversarial images.

    Attributes:
        domain: The head, built in `bind`: features (N, num_features) to two logits, clean and adversarial.
        reversal: Factor of the current epoch, a scalar.
        epoch: Number of the current epoch, -1 before the first one.
    """

    domain: nn.Sequential
    reversal: Tensor
    epoch: Tensor

    def __init__(
        self, beta: float = 8.0, domain_weight: float = 6.0, hidden: Sequence[int] = (100,), batch_norm: bool = True
    ) -> None:
        super().__init__()
        self.beta = checked_weight("beta", beta, 6)
        self.domain_weight = checked_weight("domain_weight", domain_weight, 4)
        self.hidden = checked("hidden", [*hidden], min(hidden, default=1) >= 1, "widths of at least 1", "'[100]'")
        self.batch_norm = batch_norm

    def bind(self, model: Classifier) -> None:
        """Build the head, and start with a factor of 0."""
        widths = (model.num_features, *self.hidden)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            norm = [nn.BatchNorm1d(after)] if self.batch_norm else []
            layers += [nn.Linear(before, after), *norm, nn.ReLU()]
        self.domain = nn.Sequential(*layers, nn.Linear(widths[-1], 2))
        # Buffers, so that a training resumed within an epoch keeps the factor of that epoch.
        self.register_buffer("reversal", torch.tensor(0.0))
        self.register_buffer("epoch", torch.tensor(-1))

    def on_epoch_start(self, epoch: int, progress: float) -> None:
        """Set the factor of a new epoch."""
        if epoch != int(self.epoch):
            self.epoch.fill_(epoch)
            self.reversal.fill_(reversal_schedule(progress))

    def forward(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> StepResult:
        """Clean cross-entropy plus weighted adversarial loss and loss of the head."""
        x_adv = self.adversarial_images(model, x, y, attack)
        clean, adversarial = model.outputs(x), model.outputs(x_adv)
        natural = cross_entropy(clean.logits, y).mean()
        robust = self.adversarial_loss(clean.logits, adversarial.logits, y)
        domain = self.domain_loss(clean.features, adversarial.features)
        loss = natural + self.beta * robust + self.domain_weight * domain
        logs = {"natural_loss": natural, "adversarial_loss": robust, "domain_loss": domain}
        return StepResult(loss, adversarial.logits, logs, clean.logits)

    def domain_loss(self, clean: Tensor, adversarial: Tensor) -> Tensor:
        """Loss of the domain head on clean and adversarial features; 2 ln 2 by chance."""
        loss = torch.zeros((), device=clean.device)
        for label, features in enumerate((clean, adversarial)):
            logits = self.domain(reverse_gradient(features.flatten(1), self.reversal))
            loss = loss + cross_entropy(logits, torch.full((len(logits),), label, device=logits.device)).mean()
        return loss

    @abstractmethod
    def adversarial_images(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> Tensor:
        """Adversarial images (N, C, H, W); the attack ignores the head."""

    @abstractmethod
    def adversarial_loss(self, clean: Tensor, adversarial: Tensor, y: Tensor) -> Tensor:
        """Term with the weight beta, a scalar, from both logits (N, num_classes)."""


class DIALKL(DIAL):
    """DIAL with the loss of TRADES; the attack maximises KL(p(x) || p(x')).

    Args:
        beta: Weight of the divergence; 8 for CIFAR-10, 6 for CIFAR-100 and SVHN.
        domain_weight: Weight of the head's loss; 6 for CIFAR-10, 4 for CIFAR-100, 2 for SVHN.
    """

    def adversarial_images(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> Tensor:
        """Images whose prediction diverges most."""
        return attack_prediction(model, x, attack)

    def adversarial_loss(self, clean: Tensor, adversarial: Tensor, y: Tensor) -> Tensor:
        """Mean divergence, with gradients into both predictions."""
        return kl_divergence(adversarial, softmax(clean, 1)).mean()


class DIALCE(DIAL):
    """DIAL with the adversarial cross-entropy, which the attack maximises.

    Args:
        beta: Weight of the adversarial cross-entropy; 6 for MNIST.
        domain_weight: Weight of the head's loss; 0.1 for MNIST.
    """

    def __init__(
        self, beta: float = 6.0, domain_weight: float = 0.1, hidden: Sequence[int] = (100,), batch_norm: bool = True
    ) -> None:
        super().__init__(beta, domain_weight, hidden, batch_norm)

    def adversarial_images(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> Tensor:
        """Adversarial images of `x`."""
        return attack(model, x, y)

    def adversarial_loss(self, clean: Tensor, adversarial: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy."""
        return cross_entropy(adversarial, y).mean()
