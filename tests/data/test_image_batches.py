import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import pad

from lightning_paf.data.image_batches import random_crop, random_flip, select_images


def numbered(n: int, size: int = 4, channels: int = 2, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """One image, repeated; every pixel is different and none is zero."""
    image = torch.arange(1, channels * size * size + 1, dtype=dtype).reshape(1, channels, size, size)
    return image.repeat(n, 1, 1, 1)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(*(st.integers(1, top) for top in (6, 4, 5, 5))),
    padding=st.integers(0, 6),
    seed=st.integers(0, 1000),
    channels_last=st.booleans(),
    dtype=st.sampled_from([torch.uint8, torch.float32]),
)
def test_batches_equal_single_images_drawn_from_the_global_generator(shape, padding, seed, channels_last, dtype):
    torch.manual_seed(seed)
    images = torch.randint(1, 256, shape).to(dtype)
    images = images.to(memory_format=torch.channels_last) if channels_last else images
    n, _, height, width = shape
    state = torch.get_rng_state()
    crops = random_crop(images, padding)
    both = random_flip(crops)
    torch.set_rng_state(state)
    top, left = torch.randint(0, 2 * padding + 1, (2, n, 1))
    mirrored = torch.rand(n) < 0.5
    for i in range(n):
        crop = pad(images[i], (padding,) * 4)[:, top[i] : top[i] + height, left[i] : left[i] + width]
        assert torch.equal(crops[i], crop)
        assert torch.equal(both[i], crop.flip(2) if mirrored[i] else crop)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_results_are_channels_last(layout):
    images = numbered(6, channels=3, dtype=torch.uint8).to(memory_format=layout)
    chosen = select_images(torch.arange(6) < 3, images, images)
    for result in (random_crop(images, 2), random_flip(images), chosen):
        assert result.is_contiguous(memory_format=torch.channels_last)
        assert result.dtype == torch.uint8


def test_images_are_selected_one_by_one():
    images, other = numbered(5), -numbered(5)
    condition = torch.tensor([True, False, False, True, True])
    assert torch.equal(select_images(condition, images, other), torch.where(condition.view(-1, 1, 1, 1), images, other))


def test_no_value_is_read_from_the_device():
    images = torch.empty(8, 3, 4, 4, dtype=torch.uint8, device="meta")  # has no values to read
    assert random_flip(random_crop(images, 1)).shape == images.shape
