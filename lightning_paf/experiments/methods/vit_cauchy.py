"""ViT against CoViT, and the growth of perturbations in their blocks."""

import torch
from torch import Tensor

from lightning_paf.analysis.jacobian_spectrum import growth
from lightning_paf.attacks import FGSM, PGD
from lightning_paf.experiments.experiment import Claim, Experiment, Variant
from lightning_paf.experiments.metrics import robust_to
from lightning_paf.experiments.options import NATURAL
from lightning_paf.loading import Run
from lightning_paf.nn.jacobian_spectrum import jacobian_spectrum

EPS = 0.05
SMALL_EPS = 0.02
ITERATIONS = 30

_SIZES = {"image_size": 8, "patch": 2, "width": 32, "depth": 3}
_COMMON = [word for name, size in _SIZES.items() for word in (f"--model.net.{name}", str(size))]
_VIT = ("--model.net", "ViT", *_COMMON, "--model.net.heads", "4")
_COVIT = ("--model.net", "CoViT", *_COMMON, "--model.net.kernels", "[3, 3, 3, 3]")
_STRONG_DECAY = ("--model.optimizer.weight_decay", "1.0")


def pgd50(eps: float) -> PGD:
    """PGD with 50 steps of a tenth of the radius."""
    return PGD(eps, step_size=eps / 10, steps=50)


def grown(run: Run, x: Tensor, y: Tensor) -> Tensor:
    """Growth of the perturbation of each image by PGD-50 in the blocks."""
    torch.manual_seed(0)
    return growth(run.model, x, pgd50(EPS)(run.model, x, y))[-1]


def last_block(run: Run, x: Tensor, y: Tensor) -> Tensor:
    """Largest singular value of the last block at each image."""
    return _blocks(run, x)[-1]


def other_blocks(run: Run, x: Tensor, y: Tensor) -> Tensor:
    """Largest singular value of all other blocks at each image."""
    return _blocks(run, x)[:-1].amax(0)


def _blocks(run: Run, x: Tensor) -> Tensor:
    return torch.stack([*jacobian_spectrum(run.model, x, ITERATIONS).blocks.values()])


def _less_growth(name: str, variant: str) -> tuple[Claim, Claim]:
    return (
        Claim(f"Weight decay reduces the growth of perturbations in {name}", variant, f"{variant}-decay", "growth"),
        Claim(f"Weight decay makes {name} more robust to PGD", f"{variant}-decay", variant, "pgd50"),
    )


EXPERIMENT = Experiment(
    title="ViT as a Cauchy problem (Wang and Ruan, ECML-PKDD 2022)",
    variants=(
        Variant("vit", _VIT),
        Variant("covit", _COVIT),
        Variant("vit-decay", (*_VIT, *_STRONG_DECAY)),
        Variant("covit-decay", (*_COVIT, *_STRONG_DECAY)),
    ),
    claims=(
        Claim("ViT is more robust to FGSM than CoViT", "vit", "covit", "fgsm", source="paper"),
        Claim("CoViT is more robust to PGD than ViT", "covit", "vit", "pgd50", source="paper"),
        Claim("CoViT is more robust to AutoAttack than ViT", "covit", "vit", "autoattack"),
        Claim("The last block of ViT has the largest value", "vit", "vit", "last", than="others"),
        Claim("The last block of CoViT has the largest value", "covit", "covit", "last", than="others"),
        *_less_growth("ViT", "vit"),
        *_less_growth("CoViT", "covit"),
    ),
    options=(
        *(*NATURAL, "--model.optimizer", "AdamW", "--model.optimizer.lr", "0.001"),
        *("--model.optimizer.weight_decay", "0.01", "--trainer.max_epochs", "30"),
    ),
    metrics={
        "fgsm": robust_to(FGSM(EPS)),
        "pgd50": robust_to(pgd50(EPS)),
        "fgsm02": robust_to(FGSM(SMALL_EPS)),
        "pgd02": robust_to(pgd50(SMALL_EPS)),
        "growth": grown,
        "last": last_block,
        "others": other_blocks,
    },
    plain=("growth", "last", "others"),
    shown=("clean", "fgsm", "pgd50", "autoattack"),
    eps=EPS,
    note=(
        "Trained on clean images without SAM: AdamW, 30 epochs. Weight decay is 0.01, and 1.0 for the variants with "
        "`decay`; it was not tuned. growth: distance of the clean and the PGD-50 forward pass after the last block, "
        "divided by that before the first block. last, others: largest singular value of the Jacobian of the last "
        "block, and the largest one of all other blocks. fgsm02, pgd02: FGSM and PGD-50 with radius 0.02 instead of "
        "0.05. The paper evaluates PGD in l2, with steps that together move an image by a tenth of the radius; here it "
        "converges."
    ),
)
