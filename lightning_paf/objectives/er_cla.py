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
from lightning_paf.objectives.checks import checked, checked_weight


class ERCLA(Objective):
    """Cross-entropy with embeddings that a critic pulls towards N(0, std^2 I).

    The critic D is trained to be low on the prior and high on the embeddings E(x), `E D(u) - E D(E(x))`; the network
    minimises `CE + weight * E D(E(x))`, so embeddings move towards the prior. This is the game of a Wasserstein GAN
    with the opposite sign of D; both players are updated in the same step. The critic is part of the objective:
    training checkpoints contain it, the classifier does not. Li, Min, Lee, Yu, Kruus, Wang, Hsieh, "Towards Robustness
    of Deep Neural Networks via Regularization", ICCV 2021. The method assumes an embedding of few dimensions, which
    `EmbeddingNet` gives any network. Gradients of the clipped critic are small: weight decay that the optimiser adds
    to them (`--model.optimizer.weight_decay`) outweighs them, and the critic vanishes.

    Args:
        weight: Weight of the critic's output in the loss of the network; 0 leaves the cross-entropy.
        std: Standard deviation of the prior in each dimension.
        hidden: Widths of the critic's hidden layers; `[]` for a linear critic.
        clip: Largest absolute value of each of the critic's weights and biases.
        rate: The critic's learning rate with Adam, relative to the optimiser's; with SGD it is the square of that.
        delay: Epochs after which adversarial images are added to the clean ones; they are attacked away from the
            prediction, not from the label. null for never, 0 for from the start.
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
        widths = [*hidden]
        self.weight = checked_weight("weight", weight, 0.1)
        self.std = checked("std", std, 0 < std < math.inf, "finite and > 0", 1)
        self.clip = checked("clip", clip, 0 < clip < math.inf, "finite and > 0", 0.01)
        self.rate = checked("rate", rate, 0 < rate < math.inf, "finite and > 0", 0.5)
        self.hidden = checked("hidden", widths, min(widths, default=1) >= 1, "widths of at least 1", "'[512, 512]'")
        self.delay = checked("delay", delay, delay is None or delay >= 0, "at least 0 epochs, or null for never", 0)
        self.embedding = embedding
        self._joined = delay == 0

    def bind(self, model: Classifier) -> None:
        """Build the critic once the width of the embeddings is known."""
        width = model.num_features if self.embedding is None else _linear(model.net, self.embedding).out_features
        widths = (width, *self.hidden)
        layers = [layer for pair in pairwise(widths) for layer in (_SlowLinear(*pair, self.rate), nn.ReLU())]
        self.critic = nn.Sequential(*layers, _SlowLinear(widths[-1], 1, self.rate), nn.LogSigmoid())

    def on_epoch_start(self, epoch: int, progress: float) -> None:
        """Add adversarial images after the delay."""
        self._joined = self.delay is not None and epoch >= self.delay

    @torch.no_grad()
    def begin_step(self, number: int) -> None:
        """Clip the weights of the critic.

        Clipping before instead of after each step only differs at the end of the training.
        """
        for parameter in self.critic.parameters():
            parameter.clamp_(-self.clip / self.rate, self.clip / self.rate)

    def forward(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> StepResult:
        """Mean cross-entropy minus the critic gap, over clean and adversarial images."""
        clean, embeddings = self._embedded(model, x)
        logits, clean_logits = clean, None
        classification = cross_entropy(clean, y).mean()
        if self._joined:
            x_adv = attack(model, x, clean.detach().argmax(1))
            logits, adversarial = self._embedded(model, x_adv)
            classification = (classification + cross_entropy(logits, y).mean()) / 2
            embeddings, clean_logits = torch.cat([embeddings, adversarial]), clean
        gap = self.critic_gap(embeddings)
        logs = {"classification_loss": classification, "critic_gap": gap}
        return StepResult(classification - gap, logits, logs, clean_logits)

    def critic_gap(self, embeddings: Tensor) -> Tensor:
        """Mean critic on embeddings (N, width) minus the mean on the prior, a scalar.

        The critic maximises it.

        Its negative is the critic's loss, while embeddings receive the gradient of `weight * E D(E(x))`.
        """
        prior = self.std * torch.randn_like(embeddings)
        return self._mean_critic(reverse_gradient(embeddings, self.weight)) - self._mean_critic(prior)

    def _mean_critic(self, embeddings: Tensor) -> Tensor:
        # The means differ in the third decimal or later, which half precision does not resolve.
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
    """Linear layer whose weights change `rate` times as fast as its parameters."""

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
    rule = f"the name of a linear layer of {type(net).__name__} ({', '.join(layers)})"
    checked("embedding", name, name in layers, rule, "null for the input of the last linear layer")
    return layers[name]
