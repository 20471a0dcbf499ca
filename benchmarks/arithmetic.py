"""Derived sizes and times of large trainings: the tables of docs/results/arithmetic.md.

    python benchmarks/arithmetic.py

Parameters and operations are counted on networks that are built without memory (the meta device). The rest are the
constants below: data sheets, and fractions of them that are targets, not measurements.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from utilisation import operations

from lightning_paf.nets import CifarResNet, WideResNet

NETS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-18": lambda: CifarResNet(18),
    "WRN-28-10": lambda: WideResNet(28, 10),
    "WRN-34-10": lambda: WideResNet(34, 10),
    "WRN-70-16": lambda: WideResNet(70, 16),
    "WRN-94-16": lambda: WideResNet(94, 16),
}
ATTACK_STEPS = 10
EPOCH = 50_000
"""Images of either kind, as in Gowal et al. (2021) and Wang et al. (2023)."""
BATCH = 1024
"""Over all GPUs."""
SYNTHETIC = 0.7
"""Fraction of synthetic images in a batch."""
IMAGE = 32 * 32 * 3 + 8
"""Bytes of an image and its label on disk."""
POOLS = {"1 M": 1_000_000, "6 M": 6_000_000, "50 M": 50_000_000, "300 M": 300_000_000}
DISK = 1e9
"""Bytes per second of sequential reads and writes on a shared file system."""
FILES = 6
"""Checkpoints in a run folder at most: the best, the last, two periodic ones, that of a signal, one being written."""
PEAK = 989e12
"""Operations a second in bf16 without sparsity: data sheet of an H100 SXM."""
SHARE = {"ResNet-18": 0.25}
WIDE_SHARE = 0.40
"""Fraction of the peak rate of a step: the targets of docs/performance.md."""
LINKS = {1: float("inf"), 8: 450e9, 64: 50e9}
"""GPUs: bytes a second between them in one direction; NVLink in a machine, 400 Gbit/s for each GPU between machines."""


@dataclass(frozen=True)
class Cost:
    """Counts of one network.

    Attributes:
        parameters: Trainable numbers.
        weights: Bytes of parameters and buffers.
        step: Operations of a PGD step of adversarial training, for one image.
        share: Fraction of the peak rate.
    """

    parameters: int
    weights: int
    step: int
    share: float

    @property
    def checkpoint(self) -> int:
        """Bytes: the weights, their average, and the optimiser's momentum."""
        return 2 * self.weights + 4 * self.parameters

    @property
    def images_per_second(self) -> float:
        """Of one GPU."""
        return PEAK * self.share / self.step

    def epoch_seconds(self, gpus: int) -> float:
        """On several GPUs, as if no gradient were sent while others are computed."""
        gradients = 2 * (gpus - 1) / gpus * 4 * self.parameters / LINKS[gpus]
        return EPOCH / BATCH * (BATCH / gpus / self.images_per_second + gradients)


def cost(name: str) -> Cost:
    """Count one network of `NETS`."""
    with torch.device("meta"):
        net = NETS[name]().eval()
        step = operations(net, torch.zeros(1, 3, 32, 32), ATTACK_STEPS)["step"]
    parameters = sum(p.numel() for p in net.parameters())
    return Cost(parameters, size(net), step, SHARE.get(name, WIDE_SHARE))


def size(net: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in net.state_dict().values())


def pool_table() -> str:
    """Sizes of synthetic sets."""
    rows = [
        [name, f"{n * IMAGE / 1e9:,.0f} GB", f"{n * IMAGE / DISK / 60:,.1f} min", f"{n / (EPOCH * SYNTHETIC):,.0f}"]
        for name, n in POOLS.items()
    ]
    return table(["images", "bytes", "read once at 1 GB/s", "epochs until as many were drawn"], rows)


def checkpoint_table(costs: dict[str, Cost]) -> str:
    """Sizes of checkpoints."""
    rows = [
        [
            name,
            f"{c.parameters:,}",
            f"{c.weights / 1e6:,.0f} MB",
            f"{c.checkpoint / 1e6:,.0f} MB",
            f"{c.checkpoint / DISK:,.1f} s",
            f"{FILES * c.checkpoint / 1e9:,.1f} GB",
        ]
        for name, c in costs.items()
    ]
    return table(["", "parameters", "weights", "checkpoint", "written at 1 GB/s", "in a run folder at most"], rows)


def epoch_table(costs: dict[str, Cost]) -> str:
    """Times of an epoch."""
    header = ["", "operations an image", "fraction of the peak", "images/s on 1 GPU", "1 GPU", "8 GPUs", "64 GPUs"]
    rows = [
        [
            name,
            f"{c.step / 1e9:,.0f} G",
            f"{c.share:.2f}",
            f"{c.images_per_second:,.0f}",
            *(f"{c.epoch_seconds(gpus):,.1f} s" for gpus in LINKS),
        ]
        for name, c in costs.items()
    ]
    return table(header, rows)


def loader_table(costs: dict[str, Cost]) -> str:
    """Images and random reads per second for one GPU."""
    rows = [
        [
            name,
            f"{c.images_per_second:,.0f}",
            f"{SYNTHETIC * c.images_per_second:,.0f}",
            f"{SYNTHETIC * c.images_per_second * IMAGE / 1e6:,.1f} MB/s",
        ]
        for name, c in costs.items()
    ]
    return table(["one GPU with", "images/s", "random reads/s where nothing is cached", "bytes from the pool"], rows)


def table(header: list[str], rows: list[list[str]]) -> str:
    """In Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def tables() -> list[str]:
    """All tables, in the order of the document."""
    costs = {name: cost(name) for name in NETS}
    return [pool_table(), loader_table(costs), checkpoint_table(costs), epoch_table(costs)]


if __name__ == "__main__":
    print("\n\n".join(tables()))
