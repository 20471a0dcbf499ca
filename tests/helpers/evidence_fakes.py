"""Evaluations in memory, a model with known adversarial images, and forged evidence files."""

import hashlib
import json
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load, save
from torch import Tensor, nn

from helpers.fakes import images, tiny_classifier
from lightning_paf.attacks import PGD, Attack
from lightning_paf.evaluation import EvaluationResult, Samples, evidence
from lightning_paf.evaluation.evaluate import Evaluation
from lightning_paf.evaluation.evidence.read import KEY
from lightning_paf.nn.classifier import Classifier

CONFIG = "a: 1\n"
EPS = Fraction(8, 255)
ATTACK = PGD(EPS, steps=3, step_size=Fraction(4, 255))


@dataclass
class SubAttack:
    label: str


@dataclass
class Result:
    """The part of an evaluation result that evidence consists of."""

    ids: np.ndarray
    labels: np.ndarray
    adversarial: np.ndarray
    outcomes: np.ndarray
    fooled_by: np.ndarray
    evaluation: Evaluation
    blocks: list
    total: int
    sub_attacks: tuple = (SubAttack("clean"), SubAttack("pgd"))
    flags: dict = field(default_factory=dict)

    def examples(self):
        yield from self.blocks


class FirstPixel(nn.Module):
    """Predicts class 1 where the first pixel is at least 128 grey levels, else class 0."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("threshold", torch.tensor(128 / 255))
        self.images = 0

    def forward(self, x: Tensor) -> Tensor:
        self.images += len(x)
        return torch.stack([torch.ones(len(x)), 2.0 * (x[:, 0, 0, 0] >= self.threshold)], dim=1)


def first_pixels(attack: Attack = ATTACK):
    """Model, samples (4) and result: one robust sample, two fooled ones, one misclassified one."""
    x, model = torch.full((4, 1, 2, 3), 0.25), FirstPixel().eval()
    x[:, 0, 0, 0] = torch.tensor([3.0, 125.0, 121.0, 200.0]) / 255
    x_adv = x[1:3].clone()
    x_adv[:, 0, 0, 0] += 8 / 255
    samples = Samples.of(x, torch.zeros(4, dtype=torch.int64))
    result = Result(
        np.arange(4),
        np.zeros(4, np.int64),
        np.array([0, 1, 1, 1]),
        np.array([1, 2, 2, 3], np.uint8),
        np.array([-1, 1, 1, -1], np.int8),
        Evaluation(model, attack, samples, seed=7, block_size=2),
        [(np.array([1]), x_adv[:1]), (np.array([2]), x_adv[1:])],
        total=4,
    )
    return model, samples, result


def attacked(attack: Attack = ATTACK) -> tuple[Classifier, Samples, EvaluationResult]:
    """A tiny classifier, 40 samples that it mostly classifies correctly, and the result of an attack."""
    model, (x, _) = tiny_classifier().eval(), images(40)
    with torch.no_grad():
        model.net.fc.bias -= model(x).mean(0)  # otherwise it predicts one class
        y = model(x).argmax(1)
        y[:3] = (y[:3] + 1) % 10
    samples = Samples.of(x, y)
    return model, samples, Evaluation(model, attack, samples, seed=7, block_size=16).run()


def written(path: Path, samples: Samples, result: Result, config: str | None = CONFIG) -> evidence.Evidence:
    return evidence.write(result, path, samples, dataset="toy", config=config)


def threat(**changes: Any) -> dict[str, Any]:
    """Metadata of another threat model."""
    return {"attack": ATTACK.describe() | changes}


def forge(path: Path, tensors: dict[str, Any] | None = None, **metadata: Any) -> Path:
    """Change tensors and metadata of a file with a valid hash, written by the library; `None` removes one."""
    with safe_open(path, "numpy") as file:
        content = json.loads(file.metadata()[KEY]) | metadata
    arrays = {name: array for name, array in (load(path.read_bytes()) | (tensors or {})).items() if array is not None}
    text = json.dumps({name: value for name, value in content.items() if value is not None})
    return seal(path, save(arrays, {KEY: text}))


def seal(path: Path, data: bytes) -> Path:
    """Write a file with a valid hash at its end."""
    path.write_bytes(data[:-32] + hashlib.sha256(data[:-32]).digest())
    return path


def refused(path: Path, reason: str) -> str:
    """Check that reading fails with this reason, in one printable line."""
    with pytest.raises(ValueError, match=reason) as caught:
        evidence.read(path)
    text = str(caught.value)
    assert text.isprintable()
    assert str(path) in text
    return text
