import pytest
import torch

from lightning_paf.data.augment import CropFlip, standard_augment


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
