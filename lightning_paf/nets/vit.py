"""Vision transformer and its convolutional control CoViT (Wang and Ruan 2022)."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_paf.nets.layers import Net
from lightning_paf.utils.options import checked

Branch = Callable[[Tensor], Tensor]
"""Residual branch of a block, from tokens (N, T, D) to (N, T, D)."""


class SelfAttention(nn.Module):
    """Multi-head self-attention, with keys and values as wide as the tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qk = nn.Linear(width, 2 * width)
        self.v = nn.Linear(width, width)
        self.projection = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (N, T, D) to (N, T, D)."""
        q, k = self.qk(x).unflatten(-1, (self.heads, -1, 2)).transpose(1, 2).unbind(-1)
        v = self.v(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        # Not `scaled_dot_product_attention`, whose kernels have no second derivatives.
        weights = (q @ k.transpose(-1, -2) * self.scale).softmax(-1)
        mixed: Tensor = self.projection((weights @ v).transpose(1, 2).flatten(2))
        return mixed


class TokenConvolution(nn.Module):
    """Convolution over the sequence of tokens, separate for each group of channels."""

    def __init__(self, width: int, kernels: Sequence[int]) -> None:
        super().__init__()
        channels = width // len(kernels)
        self.convolutions = nn.ModuleList(nn.Conv1d(channels, channels, kernel, padding="same") for kernel in kernels)
        self.projection = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (N, T, D) to (N, T, D)."""
        groups = x.transpose(1, 2).chunk(len(self.convolutions), dim=1)
        convolved = [convolve(groups[number]) for number, convolve in enumerate(self.convolutions)]
        mixed: Tensor = self.projection(torch.cat(convolved, dim=1).transpose(1, 2))
        return mixed


class EncoderBlock(nn.Module):
    """Pre-norm block: `x + mixer(LN(x))`, then `x + MLP(LN(x))`."""

    def __init__(self, width: int, mixer: nn.Module) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.mixer = mixer
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (N, T, D) to (N, T, D)."""
        x = x + self.mixer(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out

    def branches(self) -> Mapping[str, Branch]:
        """Residual branches by name, in the order in which `forward` adds them."""
        return {"mixer": lambda x: self.mixer(self.norm1(x)), "mlp": lambda x: self.mlp(self.norm2(x))}


class TokenNet(Net):
    """Encoder of image patches with a head on the mean of all tokens.

    Tokens are a class token and one token per patch, plus a learned position embedding; both start from N(0, 1). The
    head averages all tokens, the class token included, and applies LayerNorm and a linear layer.

    Args:
        num_classes: Width of the logits.
        in_channels: Channels of the images.
        image_size: Side to which images are resized bilinearly, inside the network.
        patch: Side of a patch.
        width: Number of channels of a token.
        mixers: One layer from tokens (N, T, width) to the same shape for each block.

    Raises:
        ValueError: A size below 1, or a patch that does not divide the image.
    """

    def __init__(
        self, num_classes: int, in_channels: int, image_size: int, patch: int, width: int, mixers: Sequence[nn.Module]
    ) -> None:
        super().__init__(num_classes)
        if not 1 <= patch <= image_size or image_size % patch:
            raise ValueError(
                f"patch must be at least 1 and divide image_size, got patch={patch} and image_size={image_size}. "
                "Pass --model.net.patch 4 and --model.net.image_size 32."
            )
        self.image_size = image_size
        self.patches = nn.Conv2d(in_channels, width, kernel_size=patch, stride=patch)
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, (image_size // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(EncoderBlock(width, mixer) for mixer in mixers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) to logits (N, num_classes)."""
        x = F.interpolate(x, (self.image_size, self.image_size), mode="bilinear")
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(x.shape[0], -1, -1), tokens], dim=1) + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(tokens).mean(1)))
        return logits


class ViT(TokenNet):
    """Vision transformer without pretraining, as in Wang and Ruan 2022.

    918,410 parameters for 10 classes. The activation is applied once per block. Wang, Ruan, "Understanding Adversarial
    Robustness of Vision Transformers via Cauchy Problem", ECML-PKDD 2022.

    Args:
        in_channels: Channels of the images.
        image_size: Side to which images are resized, inside the network, so that attacks act on the original pixels.
        patch: Side of a patch.
        width: Number of channels of a token.
        depth: Number of blocks.
        heads: Number of attention heads.

    Raises:
        ValueError: A size below 1, a patch that does not divide the image, or heads that do not divide the width.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 224,
        patch: int = 16,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
    ) -> None:
        checked("heads", heads, heads >= 1, "at least 1", 4)
        _check_groups("heads", heads, width, depth)
        mixers = [SelfAttention(width, heads) for _ in range(depth)]
        super().__init__(num_classes, in_channels, image_size, patch, width, mixers)


class CoViT(TokenNet):
    """`ViT` with convolutions over the tokens instead of attention.

    769,930 parameters for 10 classes. Group j of `width / len(kernels)` channels gets a convolution of length
    `kernels[j]` over all tokens, the class token first; a linear layer mixes the groups. The control of Wang and Ruan
    2022 for the effect of attention.

    Args:
        in_channels: Channels of the images.
        image_size: Side to which images are resized, inside the network, so that attacks act on the original pixels.
        patch: Side of a patch.
        width: Number of channels of a token.
        depth: Number of blocks.
        kernels: Length of the convolution of each group, in tokens.

    Raises:
        ValueError: A size below 1, a patch that does not divide the image, or groups that do not divide the width.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 224,
        patch: int = 16,
        width: int = 128,
        depth: int = 4,
        kernels: Sequence[int] = (3, 3, 3, 3),
    ) -> None:
        checked("kernels", [*kernels], min(kernels, default=0) >= 1, "at least one length of 1 or more", "'[3,3,3,3]'")
        _check_groups("kernels", len(kernels), width, depth)
        mixers = [TokenConvolution(width, kernels) for _ in range(depth)]
        super().__init__(num_classes, in_channels, image_size, patch, width, mixers)


def _check_groups(name: str, groups: int, width: int, depth: int) -> None:
    for option, size in (("width", width), ("depth", depth)):
        if size < 1:
            raise ValueError(f"{option} must be at least 1, got {size}. Pass another --model.net.{option}.")
    if width % groups:
        raise ValueError(
            f"width must be a multiple of the number of {name}, got {width} for {groups}. "
            f"Pass --model.net.width {(width // groups + 1) * groups}, or other {name}."
        )
