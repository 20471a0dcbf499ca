"""AWP around PGD training and around TRADES."""

from typing import TYPE_CHECKING

import torch

from lightning_paf.attacks import PGD
from lightning_paf.experiments.experiment import Claim, Experiment, Variant
from lightning_paf.functional.predictions import misclassified

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_paf.loading import Run

_AWP = ("--model.objective", "AWP", "--model.objective.gamma", "0.01")


def robust_gap(run: "Run", x: "Tensor", y: "Tensor") -> float:
    """PGD-20 accuracy on as many training images as there are test images, minus that on these."""
    run.datamodule.prepare_data()
    run.datamodule.setup("fit")
    dataset = run.datamodule.train_dataloader().dataset
    raw = dataset.__getitems__(list(range(len(x))))  # type: ignore[attr-defined]
    seen = raw.images.permute(0, 3, 1, 2).float() / 255
    attack = PGD(0.2, step_size=0.025, steps=20)
    robust: list[float] = []
    for images, labels in ((seen, raw.labels), (x, y)):
        with torch.no_grad():
            robust.append((~misclassified(run.model(attack(run.model, images, labels)), labels)).float().mean().item())
    return robust[0] - robust[1]


EXPERIMENT = Experiment(
    title="Adversarial weight perturbation (Wu et al., NeurIPS 2020)",
    variants=(
        Variant("pgd"),
        Variant("pgd-awp", (*_AWP, "--model.objective.objective", "AdversarialCE")),
        Variant("trades", ("--model.objective", "TRADES")),
        Variant("trades-awp", (*_AWP, "--model.objective.objective", "TRADES")),
    ),
    metrics={"robust_gap": robust_gap},
    claims=(
        Claim("AWP makes PGD training more robust", "pgd-awp", "pgd", "autoattack", source="paper"),
        Claim("AWP makes TRADES more robust", "trades-awp", "trades", "autoattack", source="paper"),
        Claim("AWP narrows the robust generalisation gap", "pgd", "pgd-awp", "robust_gap", source="paper"),
    ),
    note=(
        "On digits 40 epochs overfit little, so AWP can gain little. A spread of clean accuracy of tens of points "
        "means that one training stayed at a constant prediction, as PGD training of small networks may; the "
        "interval is then too wide for a conclusion."
    ),
)
