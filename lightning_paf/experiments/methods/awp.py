"""AWP around PGD training and around TRADES."""

from torch import Tensor

from lightning_paf.attacks import PGD
from lightning_paf.data.image_batches import as_floats
from lightning_paf.experiments.experiment import Claim, Experiment, Variant
from lightning_paf.experiments.metrics import correct
from lightning_paf.experiments.options import objective
from lightning_paf.loading import Run


def robust_gap(run: Run, x: Tensor, y: Tensor) -> float:
    """PGD-20 accuracy on the first training images minus that on the test images."""
    run.datamodule.prepare_data()
    run.datamodule.setup("fit")
    dataset = run.datamodule.train_dataloader().dataset
    raw = dataset.__getitems__(list(range(len(x))))  # type: ignore[attr-defined]
    seen = as_floats(raw.images)
    attack = PGD(0.2, step_size=0.025, steps=20)
    train, test = (
        correct(run.model, attack(run.model, images, labels), labels).float().mean().item()
        for images, labels in ((seen, raw.labels), (x, y))
    )
    return train - test


EXPERIMENT = Experiment(
    title="Adversarial weight perturbation (Wu et al., NeurIPS 2020)",
    variants=(
        Variant("pgd"),
        Variant("pgd-awp", objective("AWP", gamma=0.01, objective="AdversarialCE")),
        Variant("trades", objective("TRADES")),
        Variant("trades-awp", objective("AWP", gamma=0.01, objective="TRADES")),
    ),
    metrics={"robust_gap": robust_gap},
    claims=(
        Claim("AWP makes PGD training more robust", "pgd-awp", "pgd", "autoattack", source="paper"),
        Claim("AWP makes TRADES more robust", "trades-awp", "trades", "autoattack", source="paper"),
        Claim("AWP narrows the robust generalisation gap", "pgd", "pgd-awp", "robust_gap", source="paper"),
    ),
    note=(
        "On digits 40 epochs overfit little, so AWP can gain little. A spread of clean accuracy of tens of points "
        "means that one training stayed at a constant prediction, as can happen with PGD training of small networks; "
        "the interval is then too wide for a conclusion."
    ),
)
