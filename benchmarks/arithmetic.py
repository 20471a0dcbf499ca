"""Derived sizes and times of large trainings: the tables of docs/results/arithmetic.md.

    python benchmarks/arithmetic.py

Parameters and operations are counted on the meta device, without memory. The constants below are from data sheets, or
target fractions of those, not measurements.
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
"""Images in a global batch, over all GPUs."""
SYNTHETIC = 0.7
"""Fraction of synthetic images in a batch."""
IMAGE = 32 * 32 * 3 + 8
"""Bytes of an image and its label on disk."""
POOLS = {"1 M": 1_000_000, "6 M": 6_000_000, "50 M": 50_000_000, "300 M": 300_000_000}
DISK = 1e9
"""Bytes per second of sequential reads and writes on a shared file system."""
FILES = 6
"""Largest number of checkpoints in a run folder: best, last, two periodic, one after a signal, one being written."""
PEAK = 989e12
"""Operations a second in bf16 without sparsity: data sheet of an H100 SXM."""
FRACTION = {"ResNet-18": 0.25}
WIDE_FRACTION = 0.40
"""Fraction of the peak rate of a step: the targets of docs/performance.md."""
LINKS = {1: float("inf"), 8: 450e9, 64: 50e9}
"""Bytes per second between GPUs, one way, by their number: NVLink in a machine, 400 Gbit/s per GPU between machines."""


@dataclass(frozen=True)
class Cost:
    """Counts of one network.

    Attributes:
        parameters: Trainable numbers.
        weights: Bytes of parameters and buffers.
        step: Operations of a PGD step of adversarial training, for one image.
        fraction: Fraction of the peak rate.
    """

    parameters: int
    weights: int
    step: int
    fraction: float

    @property
    def checkpoint(self) -> int:
        """Bytes: the weights, their average, and the optimiser's momentum."""
        return 2 * self.weights + 4 * self.parameters

    @property
    def images_per_second(self) -> float:
        """Images per second on one GPU."""
        return PEAK * self.fraction / self.step

    def epoch_seconds(self, gpus: int) -> float:
        """Seconds of an epoch on several GPUs, if communication and computation do not overlap."""
        gradients = 2 * (gpus - 1) / gpus * 4 * self.parameters / LINKS[gpus]
        return EPOCH / BATCH * (BATCH / gpus / self.images_per_second + gradients)


def cost(name: str) -> Cost:
    """Count one network of `NETS`."""
    with torch.device("meta"):
        net = NETS[name]().eval()
        step = operations(net, torch.zeros(1, 3, 32, 32), ATTACK_STEPS)["step"]
    parameters = sum(p.numel() for p in net.parameters())
    return Cost(parameters, size(net), step, FRACTION.get(name, WIDE_FRACTION))


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
    cells: dict[str, Callable[[Cost], str]] = {
        "parameters": lambda c: f"{c.parameters:,}",
        "weights": lambda c: f"{c.weights / 1e6:,.0f} MB",
        "checkpoint": lambda c: f"{c.checkpoint / 1e6:,.0f} MB",
        "written at 1 GB/s": lambda c: f"{c.checkpoint / DISK:,.1f} s",
        "in a run folder at most": lambda c: f"{FILES * c.checkpoint / 1e9:,.1f} GB",
    }
    return network_table("", cells, costs)


def epoch_table(costs: dict[str, Cost]) -> str:
    """Times of an epoch."""
    cells: dict[str, Callable[[Cost], str]] = {
        "operations an image": lambda c: f"{c.step / 1e9:,.0f} G",
        "fraction of the peak": lambda c: f"{c.fraction:.2f}",
        "images/s on 1 GPU": lambda c: f"{c.images_per_second:,.0f}",
        "1 GPU": lambda c: f"{c.epoch_seconds(1):,.1f} s",
        "8 GPUs": lambda c: f"{c.epoch_seconds(8):,.1f} s",
        "64 GPUs": lambda c: f"{c.epoch_seconds(64):,.1f} s",
    }
    return network_table("", cells, costs)


def loader_table(costs: dict[str, Cost]) -> str:
    """Images and random reads per second for one GPU."""
    cells: dict[str, Callable[[Cost], str]] = {
        "images/s": lambda c: f"{c.images_per_second:,.0f}",
        "random reads/s where nothing is cached": lambda c: f"{SYNTHETIC * c.images_per_second:,.0f}",
        "bytes from the pool": lambda c: f"{SYNTHETIC * c.images_per_second * IMAGE / 1e6:,.1f} MB/s",
    }
    return network_table("one GPU with", cells, costs)


def network_table(corner: str, cells: dict[str, Callable[[Cost], str]], costs: dict[str, Cost]) -> str:
    """One row per network, one column per cell."""
    rows = [[name, *(cell(c) for cell in cells.values())] for name, c in costs.items()]
    return table([corner, *cells], rows)


def table(header: list[str], rows: list[list[str]]) -> str:
    """Format a table in Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def tables() -> list[str]:
    """All tables, in the order of the document."""
    costs = {name: cost(name) for name in NETS}
    return [pool_table(), loader_table(costs), checkpoint_table(costs), epoch_table(costs)]


if __name__ == "__main__":
    print("\n\n".join(tables()))
