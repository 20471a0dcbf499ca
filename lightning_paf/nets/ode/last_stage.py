"""Residual networks whose last stage is a neural ODE."""

from torch import Tensor, nn

from lightning_paf.nets.layers import Net, init_convolutions
from lightning_paf.nets.ode.block import ODEBlock, Solver
from lightning_paf.nets.ode.fields import AutonomousField, TimeField


class LastStageODE(Net):
    """A ResNet with an ODE block instead of the last stage's residual blocks.

    The first block of the stage stays, as it changes resolution and channels. All blocks after it, which preserve the
    shape, are replaced by one `ODEBlock` with the field of `TisODENet` or `ODENet`.

    Args:
        net: A ResNet whose stages are `nn.Sequential` of blocks, such as CifarResNet, PreActResNet or WideResNet.
        num_classes: Width of the logits of `net`.
        time_invariant: Whether the field is that of `TisODENet`; false for that of `ODENet`.
        groups: Groups of the group norms of the field; they must divide the channels of the last stage.
        t_end: Time of the output, > 0.
        step: Length of a step, which must divide `t_end`.
        solver: `euler`, `midpoint`, `rk4` or `dopri5`, all with fixed steps.

    Raises:
        ValueError: The network has no such stage; a value outside its range.
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int = 10,
        time_invariant: bool = True,
        groups: int = 32,
        t_end: float = 1.0,
        step: float = 0.1,
        solver: Solver = "euler",
    ) -> None:
        super().__init__(num_classes)
        self.net = net
        path, channels = last_stage(net)
        kind = AutonomousField if time_invariant else TimeField
        block = ODEBlock(kind(channels, groups), t_end, step, solver)
        init_convolutions(block)
        net.set_submodule(path, nn.Sequential(net.get_submodule(f"{path}.0"), block))

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, num_classes)."""
        logits: Tensor = self.net(x)
        return logits


def last_stage(net: nn.Module) -> tuple[str, int]:
    """Path of the last chain of equal blocks, and its number of channels."""
    chains = {path: module for path, module in net.named_modules() if isinstance(module, nn.Sequential)}
    stages = {
        path: widths
        for path, chain in chains.items()
        if len({type(block) for block in chain}) == 1 and (widths := _widths(chain[0]))
    }
    innermost = [path for path in stages if not any(other.startswith(f"{path}.") for other in stages)]
    if not innermost:
        raise ValueError(
            f"net must be a ResNet with stages of residual blocks, got {type(net).__name__}. "
            "Pass --model.net.net CifarResNet."
        )
    return innermost[-1], stages[innermost[-1]][-1]


def _widths(block: nn.Module) -> list[int]:
    """Output channels of the convolutions inside a block; none for a convolution."""
    return [layer.out_channels for layer in block.modules() if isinstance(layer, nn.Conv2d) and layer is not block]
