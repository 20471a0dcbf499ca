"""Results, and a model of which it is known what fools it."""

import re
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers.fakes import images, tiny_classifier
from lightning_paf.attacks import PGD
from lightning_paf.evaluation.evidence.write import read_receipt, write_receipt
from lightning_paf.evaluation.samples import Samples

EPS = Fraction(8, 255)
ATTACK = PGD(EPS, steps=3, step_size=Fraction(4, 255))


@dataclass
class Stage:
    label: str


@dataclass
class Judged:
    """What evidence reads of a result."""

    ids: np.ndarray
    labels: np.ndarray
    adversarial: np.ndarray
    outcomes: np.ndarray
    fooled_by: np.ndarray
    blocks: list
    total: int
    sub_attacks: tuple = (Stage("clean"), Stage("pgd"))

    def examples(self):
        yield from self.blocks


class Locks(nn.Module):
    """Is fooled at the first pixel. The second says by what: 8 grey levels, about half of one, exactly 0.3 of one."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sizes", torch.tensor([0.1, 1e-5]))
        self.images = 0

    def forward(self, x: Tensor) -> Tensor:
        self.images += len(x)
        level, lock = 255 * x[:, 0, 0, 0].double(), (x[:, 0, 0, 1] * 255 / 100).round()
        rest = level - level.floor()
        fooled = torch.where(lock == 0, level >= 128, (rest - 0.5).abs() < self.sizes[0])
        fooled = torch.where(lock == 2, (rest - 0.3).abs() < self.sizes[1], fooled)
        return torch.stack([torch.ones(len(x)), 2.0 * fooled], dim=1)


def locks():
    """The model, clean samples (6), and a result: one sample robust, three broken by each lock, one without proof,
    one clean error."""
    x = torch.full((6, 1, 2, 3), 0.25)
    x[:, 0, 0, 0] = torch.tensor([3.0, 125.0, 3.0, 3.0, 3.0, 200.0]) / 255
    x[:, 0, 0, 1] = torch.tensor([0.0, 0.0, 1.0, 2.0, 1.0, 0.0]) * 100 / 255
    x_adv = x.clone()
    x_adv[1:4, 0, 0, 0] += torch.tensor([8.0, 0.5, 0.3]) / 255
    x_adv[1, 0, 1] -= 8 / 255
    judged = Judged(
        np.arange(6),
        np.zeros(6, np.int64),
        np.array([0, 1, 1, 1, 1, 1]),
        np.array([1, 2, 2, 2, 2, 3], np.uint8),
        np.array([-1, 1, 1, 1, 1, -1], np.int8),
        [(np.array([2, 1]), x_adv[[2, 1]]), (np.array([4, 3]), x_adv[[4, 3]])],
        total=6,
    )
    return Locks().eval(), Samples.of(x, torch.zeros(6, dtype=torch.int64)), judged


def attacked(n: int = 40, attack: PGD = ATTACK):
    """A tiny classifier, samples that it mostly has right, and what an attack made of them."""
    model, (x, _) = tiny_classifier().eval(), images(n)
    with torch.no_grad():
        model.net.fc.bias -= model(x).mean(0)  # so that it is not always the same class
        y = model(x).argmax(1)
        y[:3] = (y[:3] + 1) % 10
        clean = model(x).argmax(1)
        x_adv = attack(model, x, y)
        adversarial = torch.where(clean == y, model(x_adv).argmax(1), clean)
    verdicts = np.where(clean != y, 3, np.where(adversarial != y, 2, 1)).astype(np.uint8)
    broken = np.flatnonzero(verdicts == 2)
    blocks = [(part, x_adv[part]) for part in np.array_split(broken, 3)]
    broken_by = np.where(verdicts == 2, 1, -1).astype(np.int8)
    judged = Judged(np.arange(n), y.numpy(), adversarial.numpy(), verdicts, broken_by, blocks, n)
    return model, Samples.of(x, y), judged


def written(path, model, samples, judged, attack=ATTACK, **options):
    settings = {"seed": 7, "block_size": 4, "precision": "fp32", "config_text": "a: 1\n", "dataset": "toy"}
    return write_receipt(path, judged, model, samples, attack=attack, **settings | options)


NAMED = re.compile("is refused. (header|manifest|tensor '(ids|labels|inputs|verdicts|broken_by|adversarial|encoding"
                   "|signs|float16|float32)'): ")  # fmt: skip


def refused(path, said):
    """Reading is refused with this message, which names a part of the file."""
    with pytest.raises(ValueError, match=said) as caught:
        read_receipt(path)
    assert NAMED.search(str(caught.value)), str(caught.value)
