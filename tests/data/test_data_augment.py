import pytest
import torch

from lightning_paf.data.augment import ColorJitter, CropFlip, GaussianNoise, standard_augment
from lightning_paf.data.image_batches import random_colours


def test_crop_and_flip_can_be_switched_off_one_by_one():
    images = torch.arange(1, 65, dtype=torch.uint8).reshape(1, 1, 8, 8).repeat(50, 1, 1, 1)
    assert torch.equal(CropFlip(0, flip=False)(images), images)
    assert {image.numpy().tobytes() for image in CropFlip(0)(images)} == {
        images[0].numpy().tobytes(),
        images[0].flip(2).numpy().tobytes(),
    }
    assert (CropFlip(4, flip=False)(images) == 0).any()


def test_negative_padding_is_refused():
    with pytest.raises(ValueError, match=r"padding must be at least 0, got -1\. Pass --data\.augment\.padding"):
        CropFlip(-1)


def test_standard_augmentations():
    assert standard_augment("cifar10").flip is standard_augment("cifar100").flip is True
    assert standard_augment("svhn").flip is False  # house numbers
    assert standard_augment("digits") is standard_augment("npz") is None


def test_colours_change_by_factors_within_the_strength():
    grey = torch.full((400, 3, 4, 4), 100, dtype=torch.uint8)  # without contrast and saturation
    values = random_colours(grey, 0.2)
    assert values.dtype == torch.uint8
    assert (values == values[:, :1, :1, :1]).all()
    assert 80 <= values.min() < 85
    assert 115 < values.max() <= 120
    assert torch.equal(random_colours(grey, 0.0), grey)


def test_contrast_and_saturation_keep_their_references(monkeypatch):
    images = torch.randint(64, 192, (50, 3, 4, 4), dtype=torch.uint8)
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, 0.0))  # all factors are 1 - strength
    monkeypatch.setattr(torch, "randperm", lambda n: torch.tensor([1, 2]))
    luma = lambda x: (torch.tensor([0.299, 0.587, 0.114])[:, None, None] * x).sum(1)  # noqa: E731
    mean = luma(images).mean((1, 2))[:, None, None, None]
    contrast = mean + 0.5 * (images - mean)
    grey = luma(contrast)[:, None]
    expected = grey + 0.5 * (contrast - grey)
    assert (random_colours(images, 0.5) - expected).abs().max() <= 0.501


def test_colour_jitter_also_crops_and_mirrors_any_number_of_channels():
    images = torch.randint(255, (20, 2, 8, 8), dtype=torch.uint8)
    torch.manual_seed(0)
    expected = CropFlip(2)(images)
    torch.manual_seed(0)
    assert torch.equal(ColorJitter(0.0, padding=2)(images), expected)
    assert not torch.equal(ColorJitter(0.2, padding=2)(images), expected)
    with pytest.raises(ValueError, match=r"strength must be in \[0, 1\], got 1.5"):
        ColorJitter(1.5)


def noise(*args):
    torch.manual_seed(0)
    images = torch.full((4000, 3, 4, 4), 128, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    return (GaussianNoise(*args)(images).double() - 128).flatten(1) / 255


def test_half_of_the_images_get_noise_of_one_of_the_sizes():
    deviation = noise([0.05, 0.1]).std(1)
    assert (deviation == 0).double().mean() == pytest.approx(0.5, abs=0.03)
    noisy = deviation[deviation > 0]
    assert noisy.square().mean().sqrt() == pytest.approx((0.0125 / 2) ** 0.5, rel=0.03)
    assert ((noisy - 0.05).abs() < 0.025).double().mean() == pytest.approx(0.5, abs=0.05)


def test_noise_is_that_of_the_paper_by_default_and_can_be_switched_off():
    assert [255 * std for std in GaussianNoise().stds] == pytest.approx([50, 75, 100])
    assert not noise([0.3], 0).any()
    assert not noise([0]).any()
    assert (noise([0.1], 1).std(1) > 0).all()


def test_noisy_images_are_clipped_and_keep_dtype_and_layout():
    images = torch.randint(256, (64, 3, 8, 8), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    before = images.clone()
    found = GaussianNoise([1.0], 1)(images)
    assert found.dtype == torch.uint8
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)
    at_the_ends = ((found == 0) | (found == 255)).double().mean()
    assert 0.5 < at_the_ends < 0.8  # without clipping, values would wrap around


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), r"stds must be .*got \[\]"),
        (([-0.1],), "stds must be .*got"),
        (([float("nan")],), "stds must be .*nan"),
        (([0.1], 1.5), r"probability must be in \[0, 1\], got 1\.5\. Pass --data\.augment\.probability 0\.5"),
    ],
)
def test_invalid_noise_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianNoise(*arguments)
