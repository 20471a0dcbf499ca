"""Time of networks relative to residual networks of equal size, forward and backward.

    python benchmarks/nets.py
    python benchmarks/nets.py --device cuda --width 64

An ODE block with 10 Euler steps, against 10 residual blocks `z + 0.1 f(z)` of the same field; ZeroSNet-20, against the
pre-activation ResNet of its layout; ResNet-18 with the gates of CIFS, against itself without them. Every call is a
forward pass in training mode and a backward pass to all weights and the input.
"""

from collections.abc import Callable
from typing import NamedTuple

import measure
import torch
from torch import Tensor, nn

from lightning_paf.nets import CifarResNet, GatedResNet, ZeroSNet
from lightning_paf.nets.ode.block import ODEBlock
from lightning_paf.nets.ode.fields import AutonomousField
from lightning_paf.nets.zerosnet import MultistepBlock

STEPS = 10
WARMUP = 3


class UnrolledField(nn.Module):
    """Residual blocks that share their weights, without a solver."""

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field = field

    def forward(self, z: Tensor) -> Tensor:
        """Map features (N, C, H, W) to the same shape."""
        time = z.new_zeros(())
        for _ in range(STEPS):
            z = z + self.field(time, z) / STEPS
        return z


class ResidualBlock(MultistepBlock):
    """The block of ZeroSNet without a history: x + F(x)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, stride, states=1, coefficients=None, parameter=1.0)

    def forward(self, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Map the state (N, in_channels, H, W) to the next one."""
        return super().forward(states)[:1]


def resnet20(width: int) -> nn.Module:
    """ZeroSNet-20 with residual blocks."""
    net = ZeroSNet(20, width=width)
    convolutions = [block.conv1 for block in net.blocks]
    net.blocks = nn.ModuleList(ResidualBlock(c.in_channels, c.out_channels, c.stride[0]) for c in convolutions)
    return net


class Comparison(NamedTuple):
    """A network, a reference with the same input, channels of the input (None: the width), and the target."""

    net: Callable[[int], nn.Module]
    reference: Callable[[int], nn.Module]
    channels: int | None
    target: str


COMPARISONS = {
    "ODE block, 10 Euler steps / 10 residual blocks": Comparison(
        lambda width: ODEBlock(AutonomousField(width, width // 2), step=1 / STEPS),
        lambda width: UnrolledField(AutonomousField(width, width // 2)),
        None,
        "<= 1.10",
    ),
    "ZeroSNet-20 / ResNet-20": Comparison(lambda width: ZeroSNet(20, width=width), resnet20, 3, "<= 1.15"),
    "ResNet-18 with two gates / ResNet-18": Comparison(
        lambda width: GatedResNet(CifarResNet(18, width=width)),
        lambda width: CifarResNet(18, width=width),
        3,
        "<= 1.10",
    ),
}


def both_passes(net: nn.Module, x: Tensor) -> Callable[[], None]:
    """A function that differentiates by all weights and the input."""
    net = net.to(x.device, memory_format=torch.channels_last).train()
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()

    def call() -> None:
        net(x).square().mean().backward()
        for tensor in (x, *net.parameters()):
            tensor.grad = None

    return call


def main() -> None:
    parser = measure.parser(__doc__, repeats=30)
    parser.add_argument("--width", type=int, default=16, help="channels of the block, and of the first stage")
    parser.add_argument("--batch", type=int, help="images; 512 on CUDA, 32 on CPU")
    options = parser.parse_args()
    options.batch = options.batch or (2 if options.quick else 512 if options.device == "cuda" else 32)
    options.repeats = min(options.repeats, 2) if options.quick else options.repeats
    device, size = measure.prepare(options), 8 if options.quick else 32
    torch.manual_seed(0)
    rows = {}
    for name, (net, reference, channels, target) in COMPARISONS.items():
        x = torch.rand(options.batch, channels or options.width, size, size, device=device)
        calls = {label: both_passes(make(options.width), x) for label, make in (("net", net), ("reference", reference))}
        times = measure.interleaved(calls, options.repeats, WARMUP, device)
        rows[name] = {**measure.ratios(times["net"], times["reference"]), "target": target}
    print(f"width {options.width}, batch {options.batch}, {size} x {size} pixels, fp32\n")
    measure.report(options, rows)


if __name__ == "__main__":
    main()
