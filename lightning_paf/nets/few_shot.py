"""PANet and PNODE, prototypical networks for few-shot segmentation."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_paf.data.episode_set import EpisodeBatch
from lightning_paf.functional.segmentation import cosine_scores, prototypes
from lightning_paf.nets.layers import Standardize
from lightning_paf.nets.ode.block import ODEBlock, Solver
from lightning_paf.nets.ode.fields import TimeConv2d, group_norm
from lightning_paf.utils.options import checked


class DeepTimeField(nn.Module):
    """Group norm, then ReLU, convolution with the time and group norm, several times.

    Args:
        channels: Channels of the state.
        groups: Groups of the group norms.
        layers: Number of convolutions.
    """

    def __init__(self, channels: int, groups: int, layers: int) -> None:
        super().__init__()
        checked("layers", layers, layers >= 1, "at least 1", 3)
        self.norms = nn.ModuleList(group_norm(groups, channels) for _ in range(layers + 1))
        self.activations = nn.ModuleList(nn.ReLU() for _ in range(layers))
        self.convs = nn.ModuleList(TimeConv2d(channels) for _ in range(layers))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """Velocity (N, C, H, W) of a state of this shape at time t."""
        z = self.norms[0](z)
        for activation, conv, norm in zip(self.activations, self.convs, list(self.norms)[1:], strict=True):
            z = norm(conv(t, activation(z)))
        return z


class PANet(nn.Module):
    """Encoder of PANet (Wang et al. 2019) with a plain last block.

    3x3 convolutions as in VGG: each stage but the last ends with max-pooling of stride 2. `widths=[64, 128, 256, 512]`,
    `convs=[2, 2, 3, 3]` and `groups=32` are the first four stages of VGG16 and the block of the paper.

    Wang, Liew, Zou, Zhou, Feng, "PANet: Few-Shot Image Semantic Segmentation with Prototype Alignment", ICCV 2019.

    Args:
        in_channels: Channels of the images.
        widths: Channels of each stage.
        convs: Convolutions of each stage.
        layers: Convolutions of the last block.
        groups: Groups of its group norms.
        pretrained: Start with the ImageNet weights of torchvision's VGG16, for the stages above. Images are then
            normalised by the statistics of the data, not of ImageNet.

    Raises:
        ValueError: A value outside its range; stages of other sizes than `pretrained` weights.
    """

    def __init__(
        self,
        in_channels: int = 1,
        widths: Sequence[int] = (32, 32, 32),
        convs: Sequence[int] = (1, 1, 1),
        layers: int = 3,
        groups: int = 8,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        widths, convs = [*widths], [*convs]
        checked("widths", widths, bool(widths) and min(widths) >= 1, "channels of at least one stage", "'[32, 32]'")
        checked("convs", convs, len(convs) == len(widths) and min(convs) >= 1, "as many as widths", "'[1, 1]'")
        stages: list[nn.Module] = []
        channels = in_channels
        for width, count in zip(widths, convs, strict=True):
            stages += [nn.MaxPool2d(3, stride=2, padding=1)] if stages else []
            for _ in range(count):
                stages += [nn.Conv2d(channels, width, kernel_size=3, padding=1), nn.ReLU()]
                nn.init.kaiming_normal_(stages[-2].weight, nonlinearity="relu")  # type: ignore[arg-type]
                channels = width
        self.encoder = nn.Sequential(*stages)
        self.field = DeepTimeField(channels, groups, layers)
        self.smallest_side = 2 ** (len(widths) - 1)
        if pretrained:
            load_vgg16(self.encoder)

    def transform(self, z: Tensor) -> Tensor:
        """Apply the last block to features (N, D, h, w): the field at time 0."""
        features: Tensor = self.field(z.new_zeros(()), z)
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) to features (N, D, h, w)."""
        return self.transform(self.encoder(x))


class PNODE(PANet):
    """Prototypical neural ODE: features flow along `PANet`'s last block.

    It has the same parameters as `PANet`. R-PNODE is this network with `RegularizedEpisodeCE`.

    Pandey, Chasmai, Sur, Lall, "Robust Prototypical Few-Shot Organ Segmentation with Regularized Neural-ODEs", IEEE TMI
    2023.

    Args:
        in_channels: As in `PANet`, like the next five.
        widths: See there.
        convs: See there.
        layers: See there.
        groups: See there.
        pretrained: See there.
        t_end: Time of the output, > 0; 4 in the paper.
        step: Length of a step, which must divide `t_end`. The paper has an adaptive step.
        solver: `euler`, `midpoint`, `rk4` or `dopri5`, all with fixed steps.

    Raises:
        ValueError: A value outside its range; see also `PANet`.
    """

    def __init__(
        self,
        in_channels: int = 1,
        widths: Sequence[int] = (32, 32, 32),
        convs: Sequence[int] = (1, 1, 1),
        layers: int = 3,
        groups: int = 8,
        pretrained: bool = False,
        t_end: float = 4.0,
        step: float = 0.5,
        solver: Solver = "euler",
    ) -> None:
        super().__init__(in_channels, widths, convs, layers, groups, pretrained)
        self.block = ODEBlock(self.field, t_end, step, solver)
        del self.field  # it belongs to the block

    def transform(self, z: Tensor) -> Tensor:
        """Solve the ODE from features (N, D, h, w)."""
        out: Tensor = self.block(z)
        return out


class FewShotSegmenter(nn.Module):
    """Segmentation of queries by the cosine to prototypes of the support.

    Args:
        net: Network from normalised images (N, C, H, W) to features (N, D, h, w).
        mean: Mean of each channel in [0, 1].
        std: Standard deviation of each channel.
    """

    def __init__(self, net: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.net, self.normalise = net, Standardize(mean, std, len(mean))

    def forward(self, batch: EpisodeBatch) -> Tensor:
        """Scores of the queries of a batch, (E, W + 1, H, W)."""
        support, query = self.encode(batch)
        return self.scores(support, query, batch)

    def encode(self, batch: EpisodeBatch) -> tuple[Tensor, Tensor]:
        """Features of support (E, W, S, D, h, w) and queries (E, D, h, w), in one pass."""
        support = batch.support.flatten(0, 2)
        features = self.features(torch.cat([support, batch.query]))
        found, query = features[: len(support)], features[len(support) :]
        return found.view(*batch.support.shape[:3], *found.shape[1:]), query

    def features(self, x: Tensor) -> Tensor:
        """Features (N, D, h, w) of images (N, C, H, W) in [0, 1].

        Raises:
            ValueError: The network returns no feature maps.
        """
        features: Tensor = self.net(self.normalise(x).to(next(self.net.parameters(), x).dtype))
        if features.dim() != 4 or len(features) != len(x):
            raise ValueError(
                f"{type(self.net).__name__} must return feature maps (N, D, h, w), got {tuple(features.shape)}. Pass "
                "--model.net PNODE."
            )
        return features

    def scores(self, support: Tensor, query: Tensor, batch: EpisodeBatch) -> Tensor:
        """Scores (E, W + 1, H, W) of the results of `encode`."""
        found = cosine_scores(query, prototypes(support, batch.support_masks))
        return F.interpolate(found, batch.query.shape[-2:], mode="bilinear")


def load_vgg16(encoder: nn.Sequential) -> None:
    """Copy the ImageNet weights of torchvision's VGG16 into its first convolutions.

    Raises:
        ValueError: The convolutions have other sizes.
    """
    from torchvision.models import VGG16_Weights, vgg16

    known = [layer for layer in vgg16(weights=VGG16_Weights.IMAGENET1K_V1).features if isinstance(layer, nn.Conv2d)]
    convs = [layer for layer in encoder if isinstance(layer, nn.Conv2d)]
    with torch.no_grad():
        for number, (conv, old) in enumerate(zip(convs, known, strict=False)):
            grey = number == 0 and conv.in_channels == 1  # the sum is the response to three equal channels
            weight = old.weight.sum(1, keepdim=True) if grey else old.weight
            if conv.weight.shape != weight.shape:
                raise ValueError(
                    f"widths and convs must be those of VGG16 for pretrained weights, got a convolution "
                    f"{tuple(conv.weight.shape)} for {tuple(weight.shape)}. Pass --model.net.widths "
                    "'[64, 128, 256, 512]' --model.net.convs '[2, 2, 3, 3]'."
                )
            conv.weight.copy_(weight)
            conv.bias.copy_(old.bias)  # type: ignore[union-attr,arg-type]
