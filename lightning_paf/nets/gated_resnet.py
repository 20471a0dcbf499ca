"""Networks whose last layers weight their channels, CIFS (Yan et al., 2021)."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from lightning_paf.functional.losses import hard_labels
from lightning_paf.nets.layers import Net
from lightning_paf.nets.ode.last_stage import last_stage
from lightning_paf.nn.channel_gate import ChannelGate, FixedGate, Importance, recorded_probes


class GatedResNet(Net):
    """A ResNet with a `ChannelGate` after each of the last blocks.

    With CifarResNet it is CIFS (Yan et al. 2021), which has 11,246,046 parameters for 10 classes. Other objectives than
    `JointCE` train the probes only through the importance of the channels.

    Args:
        net: A ResNet whose stages are `nn.Sequential` of blocks, such as CifarResNet or WideResNet; any network with
            convolutions if `layers` are given.
        num_classes: Width of the logits of `net`.
        probes: Kind of the probe of each gate, `linear` or `mlp`, in the order of the layers. `random` is a gate with a
            random fixed importance and without a probe, as a control.
        layers: Paths in `net` of the layers before the gates, each with the channels of the convolution before it; null
            for the last blocks of the last stage.
        importance: `softmax`, `sigmoid`, `softplus` or `identity` of the relevance, see `ChannelGate`.
        topk: Number of classes that determine the relevance.
        scale: Factor of the importance, > 0.

    Raises:
        ValueError: The network has no such layers; a value outside its range.
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int = 10,
        probes: Sequence[Literal["linear", "mlp", "random"]] = ("mlp", "linear"),
        layers: Sequence[str] | None = None,
        importance: Importance = "softmax",
        topk: int = 2,
        scale: float = 1.0,
    ) -> None:
        super().__init__(num_classes)
        if not probes:
            raise ValueError("probes must hold at least one probe, got none. Pass --model.net.probes '[linear]'.")
        self.net = net
        paths = _last_blocks(net, len(probes)) if layers is None else [*layers]
        if len(set(paths)) != len(probes):
            raise ValueError(
                f"layers must be {len(probes)} different paths, one for each probe, got {paths}. "
                "Pass --model.net.layers '[...]' or null."
            )
        widths = [_channels(net, path) for path in paths]  # before gates change the paths
        gates: list[nn.Module] = [
            FixedGate(channels, scale)
            if probe == "random"
            else ChannelGate(channels, num_classes, probe, importance, topk, scale)
            for channels, probe in zip(widths, probes, strict=True)
        ]
        # Inner layers first, since a gate changes the paths inside its layer.
        for path, gate in sorted(zip(paths, gates, strict=True), key=lambda pair: -pair[0].count(".")):
            net.set_submodule(path, nn.Sequential(net.get_submodule(path), gate))

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, num_classes)."""
        logits: Tensor = self.net(x)
        return logits

    def forward_aux(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Logits (N, num_classes) of the network, and those of each probe.

        Args:
            x: Images (N, C, H, W).
            y: Labels (N,), or distributions over the classes, which replace the most likely class in training mode.
        """
        with recorded_probes(self, None if y is None else hard_labels(y)) as collected:
            return self(x), collected()


def _last_blocks(net: nn.Module, count: int) -> list[str]:
    """Paths of the last residual blocks of the last stage."""
    path = last_stage(net)[0]
    blocks = len(list(net.get_submodule(path).children()))
    if blocks < count:
        raise ValueError(
            f"The last stage must have at least {count} blocks, one for each probe, got {blocks}. "
            "Pass fewer --model.net.probes."
        )
    return [f"{path}.{number}" for number in range(blocks - count, blocks)]


def _channels(net: nn.Module, path: str) -> int:
    """Output channels of the last convolution defined up to the end of a layer."""
    names = [name for name, _ in net.named_modules()]
    inside = [number for number, name in enumerate(names) if f"{name}.".startswith(f"{path}.")]
    before = [net.get_submodule(name) for name in names[: max(inside, default=-1) + 1]]
    widths = [layer.out_channels for layer in before if isinstance(layer, nn.Conv2d)]
    if not widths:
        raise ValueError(
            f"layers must be paths of layers after a convolution, got {path!r} in {type(net).__name__}. "
            "Pass --model.net.layers null, or paths such as those of `fit --print_config`."
        )
    return widths[-1]
