"""Linear SVMs with attention, for many pairs of classes (Zhou et al., 2022)."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class AttentionSVM:
    """Linear SVMs with attention, `score(z) = w . (a(z) o z) + b`.

    The attention is `a(z) = exp(softmax(tanh(A z + c) / temperature))`.

    Zhou, Tsang, Yin, "LADDER: Latent Boundary-guided Adversarial Training", Machine Learning 2022, use temperature 1.
    The attention to d features then lies between 1 and `exp(e / (e + (d - 1) / e))`, 1.0147 for 500 features, so its
    effect is negligible. Smaller temperatures are our addition.

    Attributes:
        weight: w, (P, d), for P pairs of classes.
        bias: b, (P,).
        matrix: A, (P, d, d); None without attention, a = 1.
        offset: c, (P, d).
        temperature: The smaller, the fewer features get attention.
    """

    weight: Tensor
    bias: Tensor
    matrix: Tensor | None
    offset: Tensor
    temperature: float = 1.0

    def attention(self, z: Tensor) -> Tensor:
        """Weights (P, N, d) of the features (P, N, d)."""
        if self.matrix is None:
            return torch.ones_like(z)
        return _attention(z @ self.matrix.mT + self.offset[:, None], self.temperature)

    def scores(self, z: Tensor) -> Tensor:
        """Scores (P, N) of features (P, N, d); negative on the side of the first class."""
        return (self.attention(z) * z * self.weight[:, None]).sum(2) + self.bias[:, None]

    def directions(self, z: Tensor) -> Tensor:
        """Directions `a(z) o w` (P, N, d) towards the second class, attention constant."""
        return self.attention(z) * self.weight[:, None]

    def pair(self, number: int) -> "AttentionSVM":
        """The SVM of one pair, P = 1."""
        rows = slice(number, number + 1)
        matrix = None if self.matrix is None else self.matrix[rows]
        return AttentionSVM(self.weight[rows], self.bias[rows], matrix, self.offset[rows], self.temperature)


def fit_attention_svm(
    z: Tensor,
    sides: Tensor,
    *,
    attention: bool = True,
    temperature: float = 1.0,
    cost: float = 0.01,
    lr: float = 0.01,
    epochs: int = 10,
    generator: torch.Generator | None = None,
) -> AttentionSVM:
    """Fit SVMs by stochastic gradient descent, one example per step.

    The objective is `cost * mean hinge(1 - side * score) + mean(w^2)`.

    All pairs use their examples in the same order. All parameters start at 0 (the paper gives no initialisation), so
    exchanging the sides reverses the direction.

    Args:
        z: Features (P, N, d) of the examples of P pairs of classes.
        sides: -1 for those of the first class, +1 for those of the second, (N,), the same for all pairs.
        attention: Fit A and c as well; False for a linear SVM.
        temperature: Temperature of the attention.
        cost: Weight of the hinge loss.
        lr: Length of the steps.
        epochs: Passes over the examples.
        generator: Generator of the order of the examples, on the CPU.

    Raises:
        ValueError: A temperature that is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}. Pass --temperature 1.")
    weight, bias, offset = torch.zeros_like(z[:, 0]), torch.zeros_like(z[:, 0, 0]), torch.zeros_like(z[:, 0])
    # A = sum_n factors_n z_n^T, as it starts at 0 and each step adds an outer product with an example.
    factors, products = torch.zeros_like(z), z @ z.mT
    for _ in range(epochs):
        for example in torch.randperm(z.shape[1], generator=generator).tolist():
            inner = (products[:, example, None] @ factors).squeeze(1) + offset  # A z + c
            w, b, inner = (part.requires_grad_() for part in (weight, bias, inner))
            attended = z[:, example] * _attention(inner, temperature) if attention else z[:, example]
            score = (w * attended).sum(1) + b
            loss = cost * (1 - sides[example] * score).relu() + w.square().mean(1)
            gradients = torch.autograd.grad(loss.sum(), [w, b, inner] if attention else [w, b])
            steps = [-lr * gradient for gradient in gradients]
            weight, bias = w.detach() + steps[0], b.detach() + steps[1]
            if attention:
                offset += steps[2]
                factors[:, example] += steps[2]
    return AttentionSVM(weight, bias, factors.mT @ z if attention else None, offset, temperature)


def _attention(inner: Tensor, temperature: float) -> Tensor:
    return (inner.tanh() / temperature).softmax(-1).exp()
