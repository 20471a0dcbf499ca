"""Certified training: certified accuracy of ReLU and PSSiLU."""

from torch import Tensor

from lightning_paf.evaluation.certificates import MethodName, certify
from lightning_paf.experiments.experiment import Claim, Experiment, Metric, Variant
from lightning_paf.experiments.metrics import training_radius
from lightning_paf.experiments.options import objective
from lightning_paf.loading import Run

PSSILU = ("--model.activation", "PSSiLU")
# Without it, two of three adversarial trainings of ReLU on CIFAR-10 ended with a constant network.
RAMP = (
    "--trainer.callbacks",
    '[{"class_path": "RadiusSchedule", "init_args": {"schedule": {"class_path": "Ramp", "init_args": {"end": 0.5}}}}]',
)


def _certified(method: MethodName) -> Metric:
    def metric(run: Run, x: Tensor, y: Tensor) -> Tensor:
        return certify(run.model, x, y, training_radius(run), method=method).certified

    return metric


TRAININGS = {
    "at": ("adversarial training", ()),
    "ibp": ("IBP", objective("IBP")),
    "crownibp": ("CROWN-IBP", objective("CROWNIBP")),
    "sabr": ("SABR", objective("SABR")),
}

EXPERIMENT = Experiment(
    title="Certified training (Gowal et al., 2018; Zhang et al., 2020; Müller et al., 2023)",
    variants=tuple(
        Variant(f"{name}_{activation}", (*options, *RAMP, *words))
        for name, (_, options) in TRAININGS.items()
        for activation, words in (("relu", ()), ("pssilu", PSSILU))
    ),
    claims=(
        *(
            Claim(f"PSSiLU certifies more than ReLU after {training}", f"{name}_pssilu", f"{name}_relu", "crown")
            for name, (training, _) in TRAININGS.items()
        ),
        Claim("IBP certifies more than adversarial training", "ibp_relu", "at_relu", "crown", source="paper"),
        Claim("CROWN-IBP certifies more than IBP", "crownibp_relu", "ibp_relu", "crown", source="paper"),
        Claim("SABR certifies more than adversarial training", "sabr_relu", "at_relu", "crown", source="paper"),
        Claim("SABR is more accurate than IBP", "sabr_relu", "ibp_relu", "clean", source="paper"),
        Claim("Adversarial training is more accurate than IBP", "at_relu", "ibp_relu", "clean", source="paper"),
    ),
    metrics={"ibp": _certified("ibp"), "crown": _certified("crown")},
    shown=("ibp", "crown", "autoattack", "clean"),
    eps=None,
    note=(
        "ibp and crown: fraction of the images that are correctly classified and have a certificate by interval bounds "
        "or by CROWN. The robust accuracy on the same images is between crown and autoattack."
    ),
    config="experiments/certified_digits",
)
