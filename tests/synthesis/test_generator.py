"""The decoder of LADDER."""

import pytest
import torch

from lightning_paf.synthesis.ladder.generator import Generator, train_generator


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 14), (3, 32, 32)])
def test_images_have_their_shape_and_range(shape):
    images = Generator(5, shape, width=4)(100 * torch.randn(2, 5))
    assert images.shape == (2, *shape)
    assert images.min() >= 0
    assert images.max() <= 1


def test_it_learns_to_decode():
    torch.manual_seed(0)
    codes = torch.rand(64, 2)
    images = (255 * codes.repeat_interleave(32, 1)).round().byte().view(64, 1, 8, 8)  # two grey halves
    generator = Generator(2, (1, 8, 8), width=8)
    first = train_generator(generator, codes, images, epochs=1, batch_size=16, lr=1e-2)
    last = train_generator(generator, codes, images, epochs=60, batch_size=16, lr=1e-2)
    assert last < first / 10
    assert (generator(codes) - images / 255).square().mean().item() < first / 10
