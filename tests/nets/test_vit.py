"""ViT and CoViT: parameter counts, equations in float64, symmetries, bounds and folding."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_paf.nets import CoViT, ViT
from lightning_paf.speed.folding import Folding

SIZES = {"image_size": 8, "patch": 2, "width": 16, "depth": 3}
BOTH = pytest.mark.parametrize("cls", [ViT, CoViT])


def small(cls, **options):
    torch.manual_seed(0)
    return cls(in_channels=1, **SIZES, **options).eval().double()


def mix_by_attention(weights, x):
    """Attention of one image (T, D) with four heads, head by head."""
    queries_keys, values = (
        x @ weights["qk.weight"].T + weights["qk.bias"],
        x @ weights["v.weight"].T + weights["v.bias"],
    )
    heads = []
    for head in range(4):
        pairs = queries_keys.unflatten(1, (4, 4, 2))[:, head]
        scores = pairs[..., 0] @ pairs[..., 1].T / math.sqrt(4)
        heads.append(scores.exp() / scores.exp().sum(1, keepdim=True) @ values[:, 4 * head : 4 * head + 4])
    return torch.cat(heads, 1) @ weights["projection.weight"].T + weights["projection.bias"]


def mix_by_convolution(weights, x):
    """Convolutions of length 3 over the tokens (T, D), group by group."""
    padded, groups = F.pad(x, (0, 0, 1, 1)), []
    for group in range(4):
        columns = padded[:, 4 * group : 4 * group + 4]
        kernel, bias = (weights[f"convolutions.{group}.{name}"] for name in ("weight", "bias"))
        groups.append(sum(columns[k : k + len(x)] @ kernel[:, :, k].T for k in range(3)) + bias)
    return torch.cat(groups, 1) @ weights["projection.weight"].T + weights["projection.bias"]


def normalised(x, weight, bias):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt() * weight + bias


@pytest.mark.parametrize(("cls", "mix"), [(ViT, mix_by_attention), (CoViT, mix_by_convolution)])
def test_logits_are_those_of_the_equations(cls, mix):
    net, image = small(cls), torch.rand(1, 8, 8, dtype=torch.float64)
    weights = net.state_dict()
    patches = [image[:, r : r + 2, c : c + 2].flatten() for r in range(0, 8, 2) for c in range(0, 8, 2)]
    tokens = torch.stack(patches) @ weights["patches.weight"].flatten(1).T + weights["patches.bias"]
    x = torch.cat([weights["class_token"][0], tokens]) + weights["positions"][0]
    for number in range(3):
        block = {key.removeprefix(f"blocks.{number}."): value for key, value in weights.items()}
        mixer = {key.removeprefix("mixer."): value for key, value in block.items()}
        x = x + mix(mixer, normalised(x, block["norm1.weight"], block["norm1.bias"]))
        hidden = normalised(x, block["norm2.weight"], block["norm2.bias"]) @ block["mlp.0.weight"].T
        x = x + F.gelu(hidden + block["mlp.0.bias"]) @ block["mlp.2.weight"].T + block["mlp.2.bias"]
    features = normalised(x.mean(0), weights["norm.weight"], weights["norm.bias"])
    expected = weights["head.weight"] @ features + weights["head.bias"]
    torch.testing.assert_close(net(image[None])[0], expected, rtol=1e-12, atol=1e-12)


def test_parameter_counts():
    embedding = 3 * 16 * 16 * 128 + 128 + 128 + 197 * 128
    mlp_and_norms = (128 * 512 + 512) + (512 * 128 + 128) + 4 * 128
    attention = 4 * (128 * 128 + 128)
    convolution = 4 * (32 * 32 * 3 + 32) + 128 * 128 + 128
    head = 2 * 128 + 1290
    for cls, mixer, count in ((ViT, attention, 918_410), (CoViT, convolution, 769_930)):
        assert embedding + 4 * (mixer + mlp_and_norms) + head == count
        assert sum(parameter.numel() for parameter in cls().parameters()) == count
        larger_patches = 3 * (32**2 - 16**2) * 128 - (196 - 49) * 128
        assert sum(parameter.numel() for parameter in cls(patch=32).parameters()) == count + larger_patches


@BOTH
def test_images_of_another_size_are_resized_inside_the_network(cls):
    net, x = small(cls), torch.rand(2, 1, 5, 7, dtype=torch.float64)
    resized = F.interpolate(x, (8, 8), mode="bilinear")
    torch.testing.assert_close(net(x), net(resized))
    assert torch.equal(F.interpolate(resized, (8, 8), mode="bilinear"), resized)


def test_an_attention_block_is_equivariant_to_any_permutation_of_the_tokens():
    block, x = small(ViT).blocks[1], torch.randn(2, 17, 16, dtype=torch.float64)
    order = torch.randperm(17)
    torch.testing.assert_close(block(x[:, order]), block(x)[:, order])
    convolution = small(CoViT).blocks[1]
    assert not torch.allclose(convolution(x[:, order]), convolution(x)[:, order])


def test_a_convolutional_block_is_equivariant_to_a_shift_away_from_the_borders():
    block, x = small(CoViT, kernels=(1, 3, 5, 7)).blocks[1], torch.randn(2, 17, 16, dtype=torch.float64)
    shifted = block(x.roll(2, dims=1))
    torch.testing.assert_close(shifted[:, 5:-3], block(x)[:, 3:-5])  # 3 = half of the longest kernel
    assert not torch.allclose(shifted, block(x).roll(2, dims=1))


def test_layer_norm_bounds_every_token():
    norm = nn.LayerNorm(16).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    bound = math.sqrt(16) * norm.weight.abs().max() + norm.bias.norm()
    for scale in (1, 1e6):
        assert norm(scale * torch.randn(1000, 16, dtype=torch.float64)).norm(dim=1).max() <= bound


@BOTH
def test_the_network_is_traced_for_the_fast_path(cls):
    net, x = small(cls), torch.rand(5, 1, 8, 8, dtype=torch.float64)
    folding = Folding(net)
    folding.refresh()
    torch.testing.assert_close(folding.net(x), net(x))


@BOTH
def test_branches_add_up_to_the_block(cls):
    block, x = small(cls).blocks[0], torch.randn(2, 17, 16, dtype=torch.float64)
    out = x
    for branch in block.branches().values():
        out = out + branch(out)
    torch.testing.assert_close(out, block(x))


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (ViT, {"image_size": 8, "patch": 16}, "patch must be at least 1 and divide image_size, got patch=16"),
        (CoViT, {"image_size": 8, "patch": 3}, "got patch=3 and image_size=8"),
        (ViT, {"patch": 0}, "got patch=0"),
        (ViT, {"image_size": -8, "patch": -4}, "got patch=-4"),
        (ViT, {"heads": 3}, r"multiple of the number of heads, got 128 for 3\. Pass --model.net.width 129"),
        (CoViT, {"width": 32, "kernels": [3, 3, 3]}, "multiple of the number of kernels, got 32 for 3"),
        (
            CoViT,
            {"kernels": []},
            r"kernels must be at least one length of 1 or more, got \[\]. Pass --model.net.kernels '\[3",
        ),
        (CoViT, {"kernels": [3, 0]}, r"kernels must be at least one length of 1 or more, got \[3, 0\]"),
        (ViT, {"heads": 0}, "heads must be at least 1, got 0"),
        (ViT, {"width": 0}, "width must be at least 1, got 0"),
        (CoViT, {"depth": 0}, "depth must be at least 1, got 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(**options)
