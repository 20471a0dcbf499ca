import pytest
import torch

from lightning_paf.functional.augment import random_crop, random_flip


def numbered(n: int, size: int = 4, channels: int = 2, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """One image, repeated; every pixel is different and none is zero."""
    image = torch.arange(1, channels * size * size + 1, dtype=dtype).reshape(1, channels, size, size)
    return image.repeat(n, 1, 1, 1)


def windows(image: torch.Tensor, padding: int) -> set[bytes]:
    padded = torch.nn.functional.pad(image, (padding,) * 4)
    size = image.shape[-1]
    steps = range(2 * padding + 1)
    return {padded[:, r : r + size, c : c + size].numpy().tobytes() for r in steps for c in steps}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_crops_are_all_the_windows_of_the_padded_image_and_nothing_else(dtype):
    images = numbered(400, dtype=dtype)
    crops = random_crop(images, 1)
    assert crops.shape == images.shape
    assert crops.dtype == dtype
    assert crops.is_contiguous()
    assert {crop.numpy().tobytes() for crop in crops} == windows(images[0], 1)


def test_crop_without_padding_is_the_identity():
    assert torch.equal(random_crop(numbered(5), 0), numbered(5))


def test_windows_are_equally_likely_and_independent():
    torch.manual_seed(0)
    images = torch.ones(9000, 1, 1, 1, dtype=torch.int64)
    # of nine windows of one pixel, one holds the pixel
    assert random_crop(images, 1).sum().item() == pytest.approx(1000, abs=120)


def test_flip_mirrors_left_to_right_half_of_the_images():
    torch.manual_seed(0)
    images = numbered(2000)
    flipped = random_flip(images)
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    kept = (flipped == images).flatten(1).all(1)
    assert (mirrored ^ kept).all()
    assert mirrored.sum().item() == pytest.approx(1000, abs=100)


def test_the_global_generator_decides():
    torch.manual_seed(3)
    first = random_flip(random_crop(numbered(20), 2))
    second = random_flip(random_crop(numbered(20), 2))
    torch.manual_seed(3)
    assert torch.equal(first, random_flip(random_crop(numbered(20), 2)))
    assert not torch.equal(first, second)
