"""Robust dataset distillation: learned images, and networks trained on them."""

import torch
from torch import Tensor

from lightning_paf.analysis.gradient_masking import attacks
from lightning_paf.experiments.claims import BoundClaim, GainClaim
from lightning_paf.experiments.experiment import Claim, Experiment, Variant
from lightning_paf.experiments.metrics import correct, robust_to, same_seed
from lightning_paf.experiments.options import NATURAL
from lightning_paf.loading import Run

EPS = 0.15
QUERIES = 300
_SURROGATE = "clean"
_ATTACKS = attacks(EPS, queries=QUERIES)


def transfer(run: Run, x: Tensor, y: Tensor) -> Tensor:
    """Mask of images robust to PGD-100 on the network trained on all images."""
    surrogate = same_seed(run, _SURROGATE)
    torch.manual_seed(0)
    return correct(run.model, _ATTACKS["margin"](surrogate, x, y), y)


def gap(run: Run, x: Tensor, y: Tensor) -> float:
    """Accuracy under PGD-20 on cross-entropy minus that under the strongest attack."""
    found = {name: robust_to(_ATTACKS[name])(run, x, y) for name in ("PGD-20", "margin", "Square")}
    strongest = torch.stack(list(found.values())).all(0)
    return float(found["PGD-20"].double().mean() - strongest.double().mean())


def _distilled(name: str, objective: str, *options: str) -> Variant:
    """Learn 100 images with kernel regression."""
    net = ("KernelClassifier", "--model.net.image_size", "8", "--model.net.support", "100")
    attack = ("PGD", "--model.attack.eps", str(EPS), "--model.attack.step_size", "0.0375")
    words = ("--model", "KIP", "--model.net", *net, "--model.attack", *attack, "--model.attack.start", "none")
    rest = ("--model.objective", objective, "--model.optimizer.lr", "0.01", "--model.schedule", "Constant")
    sizes = ("--data.batch_size", "300", "--trainer.max_epochs", "60")
    return Variant(name, (*words, *rest, *sizes, *options), after=(_SURROGATE,))


def _network(source: str) -> Variant:
    """Train a network on learned images, which `test` writes, without attacks."""
    write = ("test", "--ckpt_path", f"{{{source}}}", "--run", "{folder}/source")
    pool = ("--data.synthetic", "{folder}/source/test/distilled.npz", "--data.real_fraction", "0")
    options = (*NATURAL, *pool, "--data.epoch", "1000")
    return Variant(f"net-{source}", options, before=(write,), after=(_SURROGATE,))


EXPERIMENT = Experiment(
    title="adv-KIP (Tsilivis, Su, Kempe, 2022), a reconstruction",
    variants=(
        Variant(_SURROGATE, NATURAL),
        _distilled("random", "SquaredError", "--model.optimizer.lr", "1e-12"),
        _distilled("kip", "SquaredError"),
        _distilled("adv-kip", "AdversarialSquaredError"),
        *(_network(source) for source in ("random", "kip", "adv-kip")),
    ),
    claims=(
        Claim("adv-KIP is more robust to PGD-20 than KIP", "adv-kip", "kip", "pgd20", source="paper"),
        Claim("KIP is at least as robust to PGD-20 as its starting images", "kip", "random", "pgd20", by=-0.02),
        Claim("A network on images of adv-KIP is more robust to PGD-20", "net-adv-kip", "net-kip", "pgd20"),
        Claim(
            "A network on images of adv-KIP exceeds one on all images",
            "net-adv-kip",
            _SURROGATE,
            "pgd20",
            source="paper",
        ),
        BoundClaim("PGD-20 overestimates the robustness of adv-KIP", "adv-kip", "gap", 0.1, source="paper"),
        Claim("adv-KIP is more robust to AutoAttack than KIP", "adv-kip", "kip", "autoattack"),
        BoundClaim("PGD-20 overestimates networks on images of adv-KIP", "net-adv-kip", "gap", 0.1, source="paper"),
        GainClaim(
            "The gap of adv-KIP to KIP is larger for networks", ("net-adv-kip", "net-kip"), ("adv-kip", "kip"), "gap"
        ),
    ),
    metrics={
        "pgd20": robust_to(_ATTACKS["PGD-20"]),
        "pgd100": robust_to(_ATTACKS["PGD-100"]),
        "square": robust_to(_ATTACKS["Square"]),
        "transfer": transfer,
        "gap": gap,
    },
    shown=("clean", "pgd20", "pgd100", "pgd", "square", "transfer", "autoattack"),
    eps=EPS,
    note=(
        "No code of the authors was found, and no number of the paper was read: constants are ours. 100 images, kernel "
        "of two hidden layers, 300 steps. pgd20 and pgd100: on cross-entropy; pgd: on the margin. square: "
        f"{QUERIES} queries. transfer: PGD-100 from the network trained on all images. gap: pgd20 minus the worst of "
        "PGD-20, PGD-100 on the margin and Square. Networks are convolutional."
    ),
)
