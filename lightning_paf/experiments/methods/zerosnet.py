"""Zero-stable residual networks, and controls that are not."""

import torch
from torch import Tensor

from lightning_paf.experiments.experiment import Claim, Experiment, Metric, Variant
from lightning_paf.experiments.metrics import correct
from lightning_paf.experiments.options import NATURAL
from lightning_paf.functional.corruptions import CORRUPTIONS
from lightning_paf.functional.multistep import root_moduli
from lightning_paf.loading import Run
from lightning_paf.nets import ZeroSNet

EPS = 0.1
LEVEL = 0.3
"""Size of the corruptions."""


def _corrupted(name: str) -> Metric:
    def metric(run: Run, x: Tensor, y: Tensor) -> Tensor:
        torch.manual_seed(0)
        return correct(run.model, CORRUPTIONS[name](x, LEVEL), y)

    return metric


def root(run: Run, x: Tensor, y: Tensor) -> Tensor:
    """Largest modulus of an extraneous root, over all blocks."""
    net = run.model.net
    assert isinstance(net, ZeroSNet)
    return torch.tensor(max(root_moduli(one)[0] for one in net.coefficients()))


def _variant(name: str, *options: str) -> Variant:
    return Variant(
        name, tuple(f"--model.net.{word}" if number % 2 == 0 else word for number, word in enumerate(options))
    )


EXPERIMENT = Experiment(
    title="ZeroSNet (Chen, Jin, Shang, AAAI 2023)",
    variants=(
        _variant("resnet", "coefficients", "[1, 0, 0, 1]"),
        _variant("opt", "parameter", "-1.8"),
        _variant("three", "parameter", "3"),
        _variant("one", "parameter", "1"),
        _variant("trainable", "parameter", "1", "trainable", "true"),
        _variant("unstable", "parameter", "-0.5"),
        _variant("ones", "coefficients", "[1, 1, 1, 1]"),
    ),
    claims=(
        Claim("ZeroSNet-Opt is more accurate than the unstable scheme", "opt", "unstable", "clean", source="paper"),
        Claim("ZeroSNet-Opt is more accurate than the inconsistent scheme", "opt", "ones", "clean", source="paper"),
        Claim("ZeroSNet-Opt is more accurate than the larger root of 1", "opt", "one", "clean", source="paper"),
        Claim("The trainable scheme is at most 2 points below the optimum", "trainable", "opt", "clean", by=-0.02),
        Claim("ZeroSNet-Opt is more robust to noise than a ResNet", "opt", "resnet", "gaussian", source="paper"),
        Claim("ZeroSNet-Opt is more robust to uniform noise than a ResNet", "opt", "resnet", "uniform", source="paper"),
        Claim("ZeroSNet-Opt is more robust to a constant than a ResNet", "opt", "resnet", "constant", source="paper"),
        Claim("Gaussian noise hurts the unstable scheme more", "opt", "unstable", "gaussian", source="paper"),
        Claim("ZeroSNet-Opt is more robust to AutoAttack than the unstable scheme", "opt", "unstable", "autoattack"),
    ),
    metrics={**{name: _corrupted(name) for name in CORRUPTIONS}, "root": root},
    plain=("root",),
    shown=("clean", *CORRUPTIONS, "pgd", "autoattack"),
    options=(
        *(*NATURAL, "--model.net", "ZeroSNet", "--model.net.depth", "32", "--model.net.width", "8"),
        *("--trainer.max_epochs", "20"),
    ),
    eps=EPS,
    note=(
        f"gaussian, uniform, constant: c = {LEVEL:g} times normal noise, c times uniform noise in [0, 1], and c, "
        "clipped to [0, 1]. root: largest modulus of an extraneous root; the ResNet has coefficients (1, 0, 0, 1) and "
        "unused projections. Clean training; the paper makes no claim about adversarial attacks."
    ),
)
