"""Embedding-regularised classifier, ER-CLA (Li et al., 2021)."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_paf.attacks.base import Attack
from lightning_paf.functional.gradient_reversal import reverse_gradient
from lightning_paf.functional.losses import cross_entropy
from lightning_paf.nn.classifier import Classifier
from lightning_paf.objectives.base import Objective, StepResult


class ERCLA(Objective):
    """Cross-entropy, and embeddings that are distributed like N(0, std^2 I), of which a critic judges.

    The critic D is trained to be low on the prior and high on the embeddings E(x), `E D(u) - E D(E(x))`, the network to
    be low, too, `CE + weight * E D(E(x))`; so embeddings move to where the prior is. That is the game of a Wasserstein
    GAN with the sign of D exchanged; both make their move in the same step. The critic is part of the objective:
    checkpoints of the training have it, the classifier does not. Li, Min, Lee, Yu, Kruus, Wang, Hsieh, "Towards
    Robustness of Deep Neural Networks via Regularization", ICCV 2021. `EmbeddingNet` gives any network an embedding
    of few dimensions, which the method presumes. Gradients of the clipped critic are small: weight decay that the
    optimiser adds to them (`--model.optimizer.weight_decay`) outweighs them, and the critic fades.

    Args:
        weight: Of the critic's judgement in the loss of the network; 0 leaves the cross-entropy.
        std: Standard deviation of the prior in each dimension.
        hidden: Widths of the critic's hidden layers; `[]` for a linear critic.
        clip: Largest absolute value of each of the critic's weights and biases.
        rate: The critic's learning rate with Adam, in multiples of the optimiser's; with SGD it is the square of that.
        delay: Epochs after which adversarial images join the clean ones, attacked away from the prediction, not from
            the label; null for never, 0 for from the start.
        embedding: Name of the network's linear layer whose output is the embedding; null for the input of the last
            linear layer.

    Attributes:
        critic: Built in `bind`: embeddings (N, width) to (N, 1), a logarithm of a probability.

    Raises:
        ValueError: A negative weight or delay, a standard deviation, clip, rate or width that is not positive. When the
            network is known: it has no linear layer of this name.
    """

    critic: nn.Sequential

    def __init__(
        self,
        weight: float = 0.1,
        std: float = 1.0,
        hidden: Sequence[int] = (512, 512, 512, 512),
        clip: float = 0.01,
        rate: float = 0.5,
        delay: int | None = None,
        embedding: str | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= weight < math.inf:
            raise ValueError(f"weight must be >= 0, got {weight}. Pass --model.objective.weight 0.1.")
        for name, value, usual in (("std", std, "1"), ("clip", clip, "0.01"), ("rate", rate, "0.5")):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be > 0, got {value}. Pass --model.objective.{name} {usual}.")
        if any(width < 1 for width in hidden):
            raise ValueError(
                f"hidden must be widths of layers, at least 1, got {list(hidden)}. "
                "Pass --model.objective.hidden '[512, 512, 512, 512]', or '[]' for a linear critic."
            )
        if delay is not None and delay < 0:
            raise ValueError(
                f"delay must be a number of epochs, at least 0, got {delay}. "
                "Pass --model.objective.delay 0 for adversarial images from the start, or null for none."
            )
        self.weight = weight
        self.std = std
        self.hidden = tuple(hidden)
        self.clip = clip
        self.rate = rate
        self.delay = delay
        self.embedding = embedding
        self._joined = delay == 0

    def bind(self, model: Classifier) -> None:
        """Build the critic, which must know the width of the embeddings."""
        width = model.num_features if self.embedding is None else _linear(model.net, self.embedding).out_features
        widths = (width, *self.hidden)
        layers = [layer for pair in pairwise(widths) for layer in (_SlowLinear(*pair, self.rate), nn.ReLU())]
        self.critic = nn.Sequential(*layers, _SlowLinear(widths[-1], 1, self.rate), nn.LogSigmoid())

    def on_epoch_start(self, epoch: int, progress: float) -> None:
        """Let adversarial images join once it is time."""
        self._joined = self.delay is not None and epoch >= self.delay

    @torch.no_grad()
    def begin_step(self, number: int) -> None:
        """Clip the critic: before each step rather than after it, the same but for the end of the training."""
        del number
        for parameter in self.critic.parameters():
            parameter.clamp_(-self.clip / self.rate, self.clip / self.rate)

    def forward(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> StepResult:
        """Mean cross-entropy and both parts of the critic's game; the means over clean and adversarial images."""
        clean, embeddings = self._embedded(model, x)
        logits, clean_logits = clean, None
        classification = cross_entropy(clean, y).mean()
        if self._joined:
            x_adv = attack(model, x, clean.detach().argmax(1))
            logits, theirs = self._embedded(model, x_adv)
            classification = (classification + cross_entropy(logits, y).mean()) / 2
            embeddings, clean_logits = torch.cat([embeddings, theirs]), clean
        gap = self.critic_gap(embeddings)
        logs = {"classification_loss": classification.detach(), "critic_gap": gap.detach()}
        return StepResult(classification - gap, logits, logs, clean_logits)

    def critic_gap(self, embeddings: Tensor) -> Tensor:
        """How much higher the critic is on embeddings (N, width) than on the prior, a scalar that the critic increases.

        Its negative is a loss: the critic's own, while embeddings receive the gradient of `weight * E D(E(x))`.
        """
        prior = self.std * torch.randn_like(embeddings)
        return self._judged(reverse_gradient(embeddings, self.weight)) - self._judged(prior)

    def _judged(self, embeddings: Tensor) -> Tensor:
        # The means differ in the third decimal or later, which half precision does not have.
        mean: Tensor = self.critic(embeddings).float().mean()
        return mean

    def _embedded(self, model: Classifier, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, num_classes) and embeddings (N, width)."""
        if self.embedding is None:
            outputs = model.outputs(x)
            return outputs.logits, outputs.features.flatten(1)
        caught: list[Tensor] = []
        hook = _linear(model.net, self.embedding).register_forward_hook(lambda _, __, output: caught.append(output))
        try:
            return model.outputs(x).logits, caught[-1].flatten(1)
        finally:
            hook.remove()


class _SlowLinear(nn.Linear):
    """A linear layer that uses `rate` times its parameters, so that what it uses moves `rate` times as fast as they."""

    def __init__(self, in_features: int, out_features: int, rate: float) -> None:
        super().__init__(in_features, out_features)
        self.rate = rate
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.div_(rate)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.rate * self.weight, self.rate * self.bias)


def _linear(net: nn.Module, name: str) -> nn.Linear:
    """The linear layer of this name.

    Raises:
        ValueError: There is none.
    """
    layers = {found: layer for found, layer in net.named_modules() if isinstance(layer, nn.Linear)}
    if name not in layers:
        raise ValueError(
            f"The embedding is the output of a linear layer, but {type(net).__name__} has none that is called {name}. "
            f"Pass --model.objective.embedding with one of {', '.join(layers)}, or null for the input of the last one."
        )
    return layers[name]
