"""Reference of the benchmarks: PGD adversarial training as in textbook repositories.

Eager fp32, images and weights in PyTorch's default layout, plain modules, the activation by the formula of the paper,
and an attack on the network itself. It is equivalent to `RobustModule` with `PGD`, `AdversarialCE` and `PSSiLU`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS, STEP_SIZE = 8 / 255, 2 / 255


class PlainPSSiLU(nn.Module):
    """x (sigmoid(|alpha| x) - |beta|) / (1 - |beta|)."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor([1.0]))
        self.beta = nn.Parameter(torch.tensor([1e-8]))

    def forward(self, x: Tensor) -> Tensor:
        alpha, beta = self.alpha.abs(), self.beta.abs()
        return x * (torch.sigmoid(alpha * x) - beta) / (1 - beta)


class Normalized(nn.Module):
    """A network that takes images in [0, 1]."""

    def __init__(self, net: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean) / self.std)


def pgd(model: nn.Module, x: Tensor, y: Tensor, steps: int, eps: float = EPS, step_size: float = STEP_SIZE) -> Tensor:
    """Projected gradient descent from a random start, as in `torchattacks`."""
    x_adv = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        loss = F.cross_entropy(model(x_adv), y)
        (gradient,) = torch.autograd.grad(loss, x_adv)
        x_adv = x_adv.detach() + step_size * gradient.sign()
        x_adv = x + (x_adv - x).clamp(-eps, eps)
        x_adv = x_adv.clamp(0, 1)
    return x_adv.detach()


def training_step(
    model: nn.Module, activation: PlainPSSiLU, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, steps: int
) -> None:
    """One step of Dai et al. (2021): statistics of the clean batch, attack in eval mode, update."""
    model.train()
    with torch.no_grad():
        model(x)
    model.eval()
    x_adv = pgd(model, x, y, steps)
    model.train()
    loss = F.cross_entropy(model(x_adv), y) + 10 * activation.beta.abs().sum()
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(activation.beta, 0.01)
    optimizer.step()
