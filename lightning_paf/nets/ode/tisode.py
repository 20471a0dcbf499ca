"""ODENet, TisODE and a residual network of equal size (Yan et al., 2020)."""

from abc import ABC, abstractmethod

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_paf.nets.layers import Net, init_convolutions
from lightning_paf.nets.ode.block import ODEBlock, Solver
from lightning_paf.nets.ode.fields import AutonomousField, TimeField, group_norm


class _SingleBlockNet(Net, ABC):
    """Two convolutions, one shape-preserving block, mean pooling, a linear layer."""

    fc: nn.Linear
    smallest_side = 4  # checked by `Classifier`

    def __init__(self, num_classes: int, in_channels: int, width: int, groups: int) -> None:
        super().__init__(num_classes, width)
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, kernel_size=3),
            group_norm(groups, width),
            nn.ReLU(),
            nn.Conv2d(width, width, kernel_size=4, stride=2, padding=1),
            group_norm(groups, width),
            nn.ReLU(),
        )

    @abstractmethod
    def transform(self, z: Tensor) -> Tensor:
        """Apply the block to features (N, width, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) to logits (N, num_classes)."""
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(self.transform(self.stem(x)), 1).flatten(1))
        return logits


class ResidualCNN(_SingleBlockNet):
    """Baseline of `TisODENet`: one residual block z + f(z) with the same field.

    141,130 parameters for MNIST. Equal to `TisODENet` with one Euler step of length 1.

    Args:
        num_classes: Width of the logits.
        in_channels: Channels of the images.
        width: Channels of all feature maps.
        groups: Groups of the group norms.

    Raises:
        ValueError: The groups do not divide the width.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, width: int = 64, groups: int = 32) -> None:
        super().__init__(num_classes, in_channels, width, groups)
        self.field = AutonomousField(width, groups)
        self.fc = nn.Linear(width, num_classes)
        init_convolutions(self)

    def transform(self, z: Tensor) -> Tensor:
        """Apply the residual block to features (N, width, H, W)."""
        velocity: Tensor = self.field(z.new_zeros(()), z)
        return z + velocity


class TisODENet(_SingleBlockNet):
    """TisODE: a network around one time-invariant neural ODE (Yan et al., 2020).

    Yan, Du, Tan, Feng, "On Robustness of Neural Ordinary Differential Equations", ICLR 2020. The steady-state penalty
    of its training is the objective `SteadyState`. 141,130 parameters for MNIST. It applies its activation twice in
    the stem and twice in each evaluation of the field.

    Args:
        num_classes: Width of the logits.
        in_channels: Channels of the images, whose sides must be 4 pixels or more.
        width: Channels of all feature maps; 64 in the authors' code.
        groups: Groups of the group norms; 32 in the authors' code.
        t_end: Time of the output, > 0.
        step: Length of a step, which must divide `t_end`; null for that of the authors' code, 0.05.
        solver: `euler`, `midpoint`, `rk4` or `dopri5`, all with fixed steps.

    Raises:
        ValueError: A value outside its range; groups that do not divide the width.
    """

    field = AutonomousField
    usual_step = 0.05

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        width: int = 64,
        groups: int = 32,
        t_end: float = 1.0,
        step: float | None = None,
        solver: Solver = "euler",
    ) -> None:
        super().__init__(num_classes, in_channels, width, groups)
        field = self.field(width, groups)
        self.block = ODEBlock(field, t_end, self.usual_step if step is None else step, solver)
        self.fc = nn.Linear(width, num_classes)
        init_convolutions(self)

    def transform(self, z: Tensor) -> Tensor:
        """Solve the ODE from features (N, width, H, W)."""
        out: Tensor = self.block(z)
        return out


class ODENet(TisODENet):
    """Vanilla ODENet: the field also depends on the time, as one more channel.

    142,410 parameters for MNIST, and Euler steps of 0.1 by default. All arguments are those of `TisODENet`.
    """

    field = TimeField
    usual_step = 0.1
