"""Certified training: certified accuracy of ReLU and PSSiLU."""

from torch import Tensor

from lightning_paf.evaluation.certificates import MethodName, certify
from lightning_paf.experiments.experiment import Claim, Experiment, Metric, Variant
from lightning_paf.experiments.options import objective
from lightning_paf.loading import Run

EPS = 0.1
IMAGES = 60
"""Number of test images that are certified."""
PSSILU = ("--model.activation", "PSSiLU")
RAMP = (
    "--trainer.callbacks",
    '[{"class_path": "RadiusSchedule", "init_args": {"schedule": {"class_path": "Ramp", "init_args": {"end": 0.5}}}}]',
)


def _certified(method: MethodName) -> Metric:
    def metric(run: Run, x: Tensor, y: Tensor) -> float:
        found = certify(run.model, x[:IMAGES], y[:IMAGES], EPS, method=method)
        return float(found.certified.double().mean())

    return metric


TRAININGS = {"at": (), "ibp": (*objective("IBP"), *RAMP), "sabr": (*objective("SABR"), *RAMP)}

EXPERIMENT = Experiment(
    title="Certified training (IBP, Gowal et al., 2018; SABR, Müller et al., ICLR 2023)",
    variants=tuple(
        Variant(f"{name}_{activation}", (*options, *words))
        for name, options in TRAININGS.items()
        for activation, words in (("relu", ()), ("pssilu", PSSILU))
    ),
    claims=(
        *(
            Claim(f"PSSiLU certifies more than ReLU after {name}", f"{name}_pssilu", f"{name}_relu", "crown")
            for name in TRAININGS
        ),
        Claim("IBP certifies more than adversarial training", "ibp_relu", "at_relu", "crown", source="paper"),
        Claim("SABR certifies more than adversarial training", "sabr_relu", "at_relu", "crown", source="paper"),
        Claim("SABR is more accurate than IBP", "sabr_relu", "ibp_relu", "clean", source="paper"),
        Claim("Adversarial training is more accurate than IBP", "at_relu", "ibp_relu", "clean", source="paper"),
    ),
    options=("--model.net.width", "8", "--model.attack.eps", str(EPS), "--model.attack.step_size", str(EPS / 4)),
    metrics={"ibp": _certified("ibp"), "crown": _certified("crown")},
    shown=("ibp", "crown", "autoattack", "clean"),
    eps=EPS,
    note=(
        f"ibp and crown: fraction of the first {IMAGES} test images with a certificate by interval bounds and by CROWN "
        f"at linf {EPS:g}. The robust accuracy is between crown and autoattack, up to the smaller number of images."
    ),
)
