from typing import get_args

import pytest
import torch

from lightning_paf.data.augment import Augment, CropFlip, standard_augment
from lightning_paf.specs import DatasetName


def test_crop_and_flip_can_be_switched_off_one_by_one():
    images = torch.arange(1, 65, dtype=torch.uint8).reshape(1, 1, 8, 8).repeat(50, 1, 1, 1)
    assert torch.equal(CropFlip(0, flip=False)(images), images)
    assert {image.numpy().tobytes() for image in CropFlip(0)(images)} == {
        images[0].numpy().tobytes(),
        images[0].flip(2).numpy().tobytes(),
    }
    assert (CropFlip(4, flip=False)(images) == 0).any()


def test_negative_padding_is_refused():
    with pytest.raises(ValueError, match=r"padding must not be negative, but is -1\. Pass --data\.augment\.padding"):
        CropFlip(-1)


@pytest.mark.parametrize("dataset", get_args(DatasetName))
def test_every_dataset_has_a_standard(dataset):
    augment = standard_augment(dataset)
    assert augment is None or isinstance(augment, Augment)


def test_digits_and_house_numbers_are_never_mirrored():
    assert standard_augment("digits") is None
    assert standard_augment("svhn").flip is False
    assert standard_augment("cifar10").flip is True
