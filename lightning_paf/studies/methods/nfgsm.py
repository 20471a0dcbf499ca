"""de Jorge et al. (2022): FGSM, RS-FGSM and N-FGSM, and what PGD says of them."""

from typing import TYPE_CHECKING, Any

from lightning_paf.studies.study import Arm, Claim, Study

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_paf.loading import Run

EPS = 0.2


def blind_spot(run: "Run", x: "Tensor", y: "Tensor") -> Any:
    """Whether each image withstands FGSM but not PGD; of nearly all images after catastrophic overfitting."""
    import torch

    from lightning_paf.attacks import FGSM, PGD

    torch.manual_seed(0)
    single, several = FGSM(EPS)(run.model, x, y), PGD(EPS, step_size=EPS / 4, steps=20)(run.model, x, y)
    with torch.no_grad():
        stands = [(run.model(images).argmax(1) == y) for images in (single, several)]
    return (stands[0] & ~stands[1]).numpy()


def alignment(run: "Run", x: "Tensor", y: "Tensor") -> Any:
    """Cosine between the loss's gradients at each image and beside it, as a mean; low after overfitting."""
    import torch

    from lightning_paf.attacks import loss_and_gradient
    from lightning_paf.functional.alignment import cosine
    from lightning_paf.functional.losses import cross_entropy

    torch.manual_seed(0)
    beside = (x + torch.empty_like(x).uniform_(-EPS, EPS)).clamp(0, 1)
    gradients = [loss_and_gradient(run.model, place, y, cross_entropy)[1] for place in (x, beside)]
    return float(cosine(*gradients).mean())


_PGD5 = ("--model.attack.steps", "5", "--model.attack.step_size", "0.08")

STUDY = Study(
    title="N-FGSM (de Jorge et al., NeurIPS 2022)",
    arms=(
        Arm("fgsm", ("--model.attack", "FGSM")),
        Arm("rs-fgsm", ("--model.attack", "RSFGSM", "--model.attack.step_size", "0.25")),
        Arm("n-fgsm-k1", ("--model.attack", "NFGSM", "--model.attack.step_size", "0.2", "--model.attack.noise", "1")),
        Arm("n-fgsm-k2", ("--model.attack", "NFGSM", "--model.attack.step_size", "0.2", "--model.attack.noise", "2")),
        Arm("pgd5", _PGD5),
    ),
    claims=(
        Claim("N-FGSM (k=2) is more robust than FGSM", "n-fgsm-k2", "fgsm", "autoattack", source="paper"),
        Claim("N-FGSM (k=1) is more robust than FGSM", "n-fgsm-k1", "fgsm", "autoattack", source="paper"),
        Claim("N-FGSM is at least as robust as RS-FGSM", "n-fgsm-k2", "rs-fgsm", "autoattack", -0.02, source="paper"),
        Claim("N-FGSM comes close to PGD training (within 5 points)", "n-fgsm-k2", "pgd5", "autoattack", -0.05),
        Claim("FGSM training has a larger blind spot than N-FGSM", "fgsm", "n-fgsm-k2", "blind_spot", source="paper"),
        Claim("N-FGSM keeps gradients aligned better", "n-fgsm-k2", "fgsm", "alignment", source="paper"),
    ),
    options=("--model.optimizer.lr", "0.01", "--model.schedule", "Cyclic"),
    measures={"blind_spot": blind_spot, "alignment": alignment},
    eps=EPS,
    note=(
        "Catastrophic overfitting, the collapse of PGD accuracy to nearly 0 while FGSM accuracy rises, was found in "
        "none of the settings that were tried on these 8x8 digits: SmallConvNet of width 16 and 32, Adam with learning "
        "rates from 0.003 to 0.03, eps from 0.2 to 0.4, up to 40 epochs; wide and pre-activation ResNets with "
        "BatchNorm. FGSM training does leave a blind spot, images that withstand FGSM and fall to PGD. What the paper "
        "shows on CIFAR-10 at 8/255 and above can therefore not be seen here in full."
    ),
)
