"""Training steps on a tiny network, without Lightning."""

import torch
from torch import nn

from helpers.fakes import images, tiny_classifier
from lightning_paf.attacks import PGD
from lightning_paf.nn.classifier import Classifier

ATTACK = PGD(0.1, step_size=0.05, steps=2)


class Trained(nn.Module):
    """A network and its objective as one module, since `DistributedDataParallel` wraps one."""

    def __init__(self, model: Classifier, objective) -> None:
        super().__init__()
        objective.bind(model)
        self.model, self.objective, self.attack = model, objective, ATTACK

    def forward(self, x, y):
        return self.objective(self.model, x, y, self.attack).loss


def steps(trained: nn.Module, n: int = 2, optimizer=None, batch=None) -> torch.optim.Optimizer:
    """Make optimiser steps as the Lightning module does, on a batch of images and labels."""
    inner = getattr(trained, "module", trained)
    optimizer = optimizer or torch.optim.SGD(inner.parameters(), lr=0.05, momentum=0.9)
    x, y = batch or images()
    for _ in range(n):
        for number in range(inner.objective.steps_per_batch):
            inner.objective.begin_step(number)
            optimizer.zero_grad()
            trained(x, y).backward()
            inner.objective.after_backward(inner.model)
            assert all(p.grad is None or torch.isfinite(p.grad).all() for p in inner.parameters())
            optimizer.step()
    return optimizer


def weights_after(objective, attack, steps: int = 3) -> dict[str, torch.Tensor]:
    """State dict after some steps from the same seed."""
    model, (x, y) = tiny_classifier().train(), images()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(3)
    for _ in range(steps):
        optimizer.zero_grad()
        objective(model, x, y, attack).loss.backward()
        optimizer.step()
    return model.state_dict()
