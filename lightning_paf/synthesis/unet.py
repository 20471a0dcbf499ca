"""U-Net of Ho et al. (2020) that predicts the noise in images."""

import math
from collections.abc import Mapping

from torch import Tensor, nn


class UNet(nn.Module):
    """Class-conditional U-Net of DDPM, `UNet2DModel` of the `diffusers` library.

    Ho, Jain, Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020. The embedding of the class is added to
    that of the time (Dhariwal and Nichol 2021). An additional class `num_classes` means no class (Ho and Salimans
    2022).

    Args:
        num_classes: Number of classes; follows the data.
        in_channels: Image channels; follows the data.
        width: Channels of the finest level.
        multipliers: For each level its channels in units of `width`; each level halves height and width.
        layers_per_block: Residual blocks per level; one more on the way up.
        attention_levels: Levels with self-attention, 0 for the finest. The middle always has it.
        dropout: Rate of dropout in the residual blocks.

    Raises:
        ValueError: A size below 1; attention on a level that does not exist; images that the levels cannot halve.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        width: int = 128,
        multipliers: tuple[int, ...] = (1, 2, 2, 2),
        layers_per_block: int = 2,
        attention_levels: tuple[int, ...] = (1,),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        sizes = {"width": width, "layers_per_block": layers_per_block, "multipliers": min(multipliers, default=0)}
        _check(sizes, len(multipliers), attention_levels, dropout)
        from diffusers import UNet2DModel

        kinds = ["Attn" * (level in attention_levels) for level in range(len(multipliers))]
        self.unet = UNet2DModel(
            in_channels=in_channels,
            out_channels=in_channels,
            block_out_channels=tuple(width * multiplier for multiplier in multipliers),
            layers_per_block=layers_per_block,
            down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
            up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
            norm_num_groups=math.gcd(width, 32),
            num_class_embeds=num_classes + 1,
            dropout=dropout,
            attention_head_dim=None,  # one head; like the following, as in the networks of Ho et al.
            norm_eps=1e-6,
            freq_shift=1,
            flip_sin_to_cos=False,
            downsample_padding=0,
        )
        nn.init.zeros_(self.unet.conv_out.weight)
        nn.init.zeros_(self.unet.conv_out.bias)
        self.divisor = 2 ** (len(multipliers) - 1)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Predict noise.

        Args:
            x: Noisy images (N, C, H, W).
            t: Time of each image (N,), from 0.
            labels: Class of each image (N,), or `num_classes` for none.

        Returns:
            Prediction (N, C, H, W).
        """
        if any(side % self.divisor for side in x.shape[2:]):
            raise ValueError(
                f"Height and width must be multiples of {self.divisor} for a UNet with this number of levels, got "
                f"{tuple(x.shape[2:])}. Pass fewer --model.net.multipliers."
            )
        # Lightning's channels-last images would propagate their layout through the network.
        predicted: Tensor = self.unet(x.contiguous(), t, class_labels=labels).sample
        return predicted


class Unconditional(nn.Module):
    """Adapter of a `UNet2DModel` without classes.

    Args:
        unet: The network.
    """

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Predict noise (N, C, H, W); `labels` are ignored."""
        del labels
        predicted: Tensor = self.unet(x, t).sample
        return predicted


def _check(sizes: Mapping[str, int], levels: int, attention_levels: tuple[int, ...], dropout: float) -> None:
    """Check the arguments of `UNet`."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}. Pass another --model.net.{name}.")
    if not set(attention_levels) <= set(range(levels)):
        raise ValueError(
            f"attention_levels must be from 0 to {levels - 1} for {levels} multipliers, got {list(attention_levels)}. "
            "Pass another --model.net.attention_levels."
        )
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}. Pass e.g. --model.net.dropout 0.1.")
