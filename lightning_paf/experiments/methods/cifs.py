"""CIFS against the plain network, a random importance and CAS."""

from lightning_paf.attacks import PGD, Attack, JointGrid, Square
from lightning_paf.experiments.experiment import Claim, Experiment, Variant
from lightning_paf.experiments.metrics import robust_to
from lightning_paf.experiments.options import objective
from lightning_paf.functional.losses import margin
from lightning_paf.types import PerExampleLoss

EPS = 0.2

_GATED = (
    *("--model.net", "GatedResNet", "--model.net.net", "SmallConvNet", "--model.net.net.width", "32"),
    *("--model.net.layers", "[features.5, features.7]", "--model.net.probes"),
)
_CIFS = (*_GATED, "[mlp, linear]", *objective("JointCE", beta=2))
_SCALE = ("--model.net.scale", "64")  # the number of channels
_CAS = ("--model.net.importance", "identity", "--model.net.topk", "1")


def pgd20(loss: PerExampleLoss | None = None) -> Attack:
    """PGD with 20 steps of a tenth of the radius, from the image itself."""
    return PGD(EPS, step_size=EPS / 10, steps=20, start="none", loss=loss)


EXPERIMENT = Experiment(
    title="CIFS (Yan et al., ICML 2021)",
    variants=(
        Variant("plain", ("--model.net.width", "32")),
        Variant("random", (*_GATED, "[random, random]", *_SCALE)),
        Variant("cas", (*_GATED, "[linear, linear]", *_CAS, *objective("JointCE", beta=2))),
        Variant("cifs", (*_CIFS, *_SCALE)),
        Variant("cifs-unscaled", _CIFS),
    ),
    claims=(
        Claim("CIFS is more robust to PGD than the plain network", "cifs", "plain", "pgd20", source="paper"),
        Claim("CIFS is more robust to the joint attack than CAS", "cifs", "cas", "joint", source="paper"),
        Claim("The gain over the plain network survives the joint attack", "cifs", "plain", "joint"),
        Claim("It survives the adaptive attack", "cifs", "plain", "adaptive"),
        Claim("It survives Square", "cifs", "plain", "square"),
        Claim("It survives AutoAttack", "cifs", "plain", "autoattack"),
        Claim("A learned importance is better than a random one", "cifs", "random", "autoattack"),
        Claim("The joint attack finds at most 5 points more than PGD", "cifs", "cifs", "joint", -0.05, than="pgd20"),
        Claim("The adaptive attack finds at most 5 points more", "cifs", "cifs", "adaptive", -0.05, than="joint"),
        Claim("Square finds less than PGD", "cifs", "cifs", "square", than="pgd20"),
    ),
    metrics={
        "pgd20": robust_to(pgd20()),
        "joint": robust_to(JointGrid(pgd20())),
        "adaptive": robust_to(JointGrid(pgd20(), mask_grad=True)),
        "adaptive_margin": robust_to(JointGrid(pgd20(margin), mask_grad=True)),
        "square": robust_to(Square(EPS, queries=1000)),
    },
    shown=("clean", "pgd20", "joint", "adaptive", "square", "autoattack"),
    options=("--trainer.max_epochs", "30"),
    eps=EPS,
    note=(
        "SmallConvNet of width 32; gates follow its last two convolutions. All variants start from random weights. "
        "pgd20: 20 steps on the cross-entropy from the image. joint: the same on logits and probes, the worst of seven "
        "weights. adaptive: the same with the gradient through the importance of the channels; adaptive_margin on the "
        "margin instead of the cross-entropy. On plain and random, joint is pgd20. The network has no batch norm, so "
        "softmax importances are multiplied by 64, the number of channels, which makes their mean 1. cifs-unscaled has "
        "those of the paper, whose mean is 1/64; in one clean trial run of 6 epochs it learned more slowly (56 % of "
        "images correct, not 84 %). random: a fixed random importance. "
        "cas: the importance is the probe's weight for the likely class, without softmax (Bai et al., ICLR 2021)."
    ),
)
