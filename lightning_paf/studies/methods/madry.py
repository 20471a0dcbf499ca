"""Madry et al. (2018): PGD adversarial training against clean and single-step training."""

from lightning_paf.studies.study import Arm, Claim, Study

_NATURAL = ("--model.objective", "Natural")
_FGSM = ("--model.attack", "FGSM")

STUDY = Study(
    title="PGD adversarial training (Madry et al., ICLR 2018)",
    arms=(
        Arm("natural", _NATURAL),
        Arm("fgsm", _FGSM),
        Arm("pgd-width4", ("--model.net.width", "4")),
        Arm("pgd-width16"),
        Arm("pgd-width32", ("--model.net.width", "32")),
    ),
    claims=(
        Claim(
            "PGD training is more robust than clean training", "pgd-width16", "natural", "autoattack", source="paper"
        ),
        Claim("PGD training is more robust than FGSM training", "pgd-width16", "fgsm", "autoattack", source="paper"),
        Claim("Clean training keeps more clean accuracy", "natural", "pgd-width16", "clean", source="paper"),
        Claim("Robustness needs capacity", "pgd-width32", "pgd-width4", "autoattack", source="paper"),
    ),
)
