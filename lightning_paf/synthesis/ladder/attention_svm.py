"""Linear support vector machines with attention to the features, many pairs of classes at once (Zhou et al., 2022)."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class AttentionSVM:
    """`score(z) = w . (a(z) o z) + b` with the attention `a(z) = exp(softmax(tanh(A z + c) / temperature))`.

    Zhou, Tsang, Yin, "LADDER: Latent Boundary-guided Adversarial Training", Machine Learning 2022, have temperature 1.
    The attention then lies between 1 and `attention_bound(d)`, 1.0147 for 500 features: there it changes next to
    nothing, and smaller temperatures are our addition.

    Attributes:
        weight: w, (P, d), for P pairs of classes.
        bias: b, (P,).
        matrix: A, (P, d, d); None for no attention, a = 1.
        offset: c, (P, d).
        temperature: Small for attention to few features.
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
        """Scores (P, N) of features (P, N, d): negative on the first class's side of the boundary."""
        return (self.attention(z) * z * self.weight[:, None]).sum(2) + self.bias[:, None]

    def directions(self, z: Tensor) -> Tensor:
        """`a(z) o w`, (P, N, d): the way towards the second class, with the attention held."""
        return self.attention(z) * self.weight[:, None]

    def pair(self, number: int) -> "AttentionSVM":
        """The machine of one pair, P = 1."""
        rows = slice(number, number + 1)
        matrix = None if self.matrix is None else self.matrix[rows]
        return AttentionSVM(self.weight[rows], self.bias[rows], matrix, self.offset[rows], self.temperature)


def attention_bound(num_features: int, temperature: float = 1.0) -> float:
    """The most that one feature's attention can be, for any A, c and z."""
    top = torch.tensor(1 / temperature).double().exp()
    return float((top / (top + (num_features - 1) / top)).exp())


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
    """Minimise `cost * mean hinge(1 - side * score) + mean(w^2)` by gradient descent, one example a step.

    All pairs see their examples in the same order. Everything begins at 0, so that the result depends on nothing else
    (how the authors begin is not known here); exchanged sides give the opposite direction.

    Args:
        z: Features (P, N, d) of the examples of P pairs of classes.
        sides: -1 for those of the first class, +1 for those of the second, (N,), the same for all pairs.
        attention: Learn A and c, too; False for an ordinary linear machine.
        temperature: Of the attention.
        cost: Of an example on the wrong side of the margin.
        lr: Length of the steps.
        epochs: Passes over the examples.
        generator: Of the order of the examples, on the CPU.

    Raises:
        ValueError: A temperature that is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"A temperature is positive, but temperature={temperature}. Pass --temperature 1.")
    fit = _Fit(z, attention, temperature)
    for _ in range(epochs):
        for example in torch.randperm(z.shape[1], generator=generator).tolist():
            fit.descend(example, float(sides[example]), cost, lr)
    return fit.result()


class _Fit:
    """The unknowns while they are fitted.

    A begins at 0 and grows by outer products with the examples, so it is kept as their factors, A = sum_n factors_n
    z_n^T: a step changes one of them, and A z follows from products of the examples with each other.
    """

    def __init__(self, z: Tensor, attention: bool, temperature: float) -> None:
        pairs, _, width = z.shape
        self.z, self.attention, self.temperature = z, attention, temperature
        self.weight, self.bias, self.offset = z.new_zeros(pairs, width), z.new_zeros(pairs), z.new_zeros(pairs, width)
        self.factors = torch.zeros_like(z)
        self.products = z @ z.mT

    def descend(self, example: int, side: float, cost: float, lr: float) -> None:
        """One step with one example of each pair."""
        weight, bias, attended = self.weight.requires_grad_(), self.bias.requires_grad_(), self.z[:, example]
        unknowns = [weight, bias]
        if self.attention:
            inner = (self.products[:, example, None] @ self.factors).squeeze(1) + self.offset
            unknowns.append(inner.requires_grad_())
            attended = _attention(inner, self.temperature) * attended
        score = (weight * attended).sum(1) + bias
        loss = cost * (1 - side * score).relu() + weight.square().mean(1)
        steps = [-lr * gradient for gradient in torch.autograd.grad(loss.sum(), unknowns)]
        self.weight, self.bias = weight.detach() + steps[0], bias.detach() + steps[1]
        if self.attention:
            self.offset += steps[2]
            self.factors[:, example] += steps[2]

    def result(self) -> AttentionSVM:
        """The machines, with A as a matrix."""
        matrix = self.factors.mT @ self.z if self.attention else None
        return AttentionSVM(self.weight, self.bias, matrix, self.offset, self.temperature)


def _attention(inner: Tensor, temperature: float) -> Tensor:
    return (inner.tanh() / temperature).softmax(-1).exp()
