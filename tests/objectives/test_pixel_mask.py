"""FGSM training with hidden pixels (Li et al. 2022)."""

import copy

import pytest
import torch
from helpers.fakes import images, tiny_classifier
from helpers.training import weights_after

from lightning_paf.attacks import FGSM, NFGSM
from lightning_paf.objectives import AdversarialCE, PixelMask

EPS = 0.1
MASKS = ("per_sample", "fixed", "grid")


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("train_input", ["masked", "unmasked"])
@pytest.mark.parametrize("attack", [FGSM(EPS), NFGSM(EPS)], ids=lambda attack: attack.label)
def test_with_nothing_hidden_it_is_fgsm_training_bit_for_bit(mask, train_input, attack):
    expected, found = (weights_after(obj, attack) for obj in (AdversarialCE(), PixelMask(0, mask, train_input)))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.7])
def test_fraction_of_kept_pixels(mask, ratio):
    x = torch.rand(64, 3, 32, 32)
    kept = PixelMask(ratio, mask).kept(x)
    sigma = (ratio * (1 - ratio) / kept.numel()) ** 0.5
    tolerance = 1 / 64 if mask == "grid" else 3 * sigma
    assert kept.mean().item() == pytest.approx(1 - ratio, abs=tolerance)
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert kept.shape == (len(x) if mask == "per_sample" else 1, 1, 32, 32)


def test_random_masks_change_every_step_and_fixed_masks_do_not():
    x = torch.rand(4, 1, 8, 8)
    random, fixed = PixelMask(0.4), PixelMask(0.4, "fixed")
    assert not torch.equal(random.kept(x), random.kept(x))
    assert not torch.equal(*random.kept(x)[:2])
    first = fixed.kept(x)
    fixed.on_epoch_start(1, 0.5)
    assert torch.equal(first, fixed.kept(x))
    assert not torch.equal(first, PixelMask(0.4, "fixed").kept(x)), "a new training draws a new mask"


@pytest.mark.parametrize("mask", ["fixed", "grid"])
def test_the_mask_is_in_the_checkpoint(mask):
    saved, other, x = PixelMask(0.4, mask), PixelMask(0.4, mask), torch.rand(1, 1, 8, 8)
    other.load_state_dict(copy.deepcopy(saved.state_dict()))
    assert torch.equal(saved.kept(x), other.kept(x))


def test_a_grid_of_one_half_is_a_checkerboard():
    kept = PixelMask(0.5, "grid").kept(torch.rand(1, 1, 6, 6))[0, 0]
    rows, columns = torch.meshgrid(torch.arange(6), torch.arange(6), indexing="ij")
    assert torch.equal(kept, ((rows + columns + kept[0, 0]) % 2 == 1).float())


def test_large_images_repeat_the_fixed_mask():
    kept = PixelMask(0.4, "fixed").kept(torch.rand(1, 3, 100, 70))
    assert torch.equal(kept[..., 64:, :70], kept[..., :36, :70])
    assert torch.equal(kept[..., 64:], kept[..., :6])


@pytest.mark.parametrize("mask", MASKS)
def test_hidden_pixels_lie_in_zero_to_eps(mask):
    model, (x, y) = tiny_classifier().train(), images()
    x = 0.5 + 0.5 * x
    objective = PixelMask(0.4, mask)
    torch.manual_seed(5)
    kept = objective.kept(x)
    torch.manual_seed(5)
    x_adv = objective.images(model, x, y, FGSM(EPS))
    hidden = x_adv[(kept == 0).expand_as(x)]
    assert hidden.numel() > 0
    assert (hidden >= 0).all()
    assert (hidden <= EPS + 1e-6).all()
    assert ((x_adv - x).abs()[(kept == 1).expand_as(x)] <= EPS + 1e-6).all()


def test_unmasked_adds_the_perturbation_of_the_masked_image_to_the_image():
    model, (x, y) = tiny_classifier().eval(), images()
    objective = PixelMask(0.4, "fixed", "unmasked")
    leaf = (x * objective.kept(x)).requires_grad_()
    torch.nn.functional.cross_entropy(model(leaf), y, reduction="sum").backward()
    expected = (x + EPS * leaf.grad.sign()).clamp(0, 1)
    torch.testing.assert_close(objective.images(model, x, y, FGSM(EPS)), expected)
