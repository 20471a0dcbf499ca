"""FGSM training with hidden pixels (Li et al. 2022)."""

import copy
import io

import pytest
import torch
from helpers.fakes import images, tiny_classifier

from lightning_paf.attacks import FGSM, NFGSM
from lightning_paf.objectives import AdversarialCE, PixelMask

EPS = 0.1
MASKS = ("per_sample", "fixed", "grid")


def trained(objective, attack, steps=3):
    """Weights after some steps from the same seed."""
    model, (x, y) = tiny_classifier().train(), images()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(3)
    for _ in range(steps):
        optimizer.zero_grad()
        objective(model, x, y, attack).loss.backward()
        optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("train_input", ["masked", "unmasked"])
@pytest.mark.parametrize("attack", [FGSM(EPS), NFGSM(EPS)], ids=lambda attack: attack.label)
def test_nothing_hidden_is_fgsm_training_bit_for_bit(mask, train_input, attack):
    expected, found = trained(AdversarialCE(), attack), trained(PixelMask(0, mask, train_input), attack)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.7])
def test_share_of_kept_pixels(mask, ratio):
    x = torch.rand(64, 3, 32, 32)
    kept = PixelMask(ratio, mask).kept(x)
    sigma = (ratio * (1 - ratio) / kept.numel()) ** 0.5
    tolerance = 1 / 64 if mask == "grid" else 3 * sigma
    assert kept.mean().item() == pytest.approx(1 - ratio, abs=tolerance)
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert kept.shape == (len(x) if mask == "per_sample" else 1, 1, 32, 32)


def test_a_random_mask_is_new_in_every_step_and_a_fixed_one_is_not():
    x = torch.rand(4, 1, 8, 8)
    random, fixed = PixelMask(0.4), PixelMask(0.4, "fixed")
    assert not torch.equal(random.kept(x), random.kept(x))
    assert not torch.equal(*random.kept(x)[:2])
    first = fixed.kept(x)
    fixed.on_epoch_start(1, 0.5)
    assert torch.equal(first, fixed.kept(x))
    assert not torch.equal(first, PixelMask(0.4, "fixed").kept(x)), "another training draws another mask"


@pytest.mark.parametrize("mask", ["fixed", "grid"])
def test_the_mask_is_in_the_checkpoint(mask):
    saved, other, x = PixelMask(0.4, mask), PixelMask(0.4, mask), torch.rand(1, 1, 8, 8)
    stream = io.BytesIO()
    torch.save(saved.state_dict(), stream)
    stream.seek(0)
    other.load_state_dict(torch.load(stream, weights_only=True))
    assert torch.equal(saved.kept(x), other.kept(x))


def test_grid_at_one_half_is_a_checkerboard():
    kept = PixelMask(0.5, "grid").kept(torch.rand(1, 1, 6, 6))[0, 0]
    rows, columns = torch.meshgrid(torch.arange(6), torch.arange(6), indexing="ij")
    assert torch.equal(kept, ((rows + columns) % 2 == 1).float()) or torch.equal(
        kept, ((rows + columns) % 2 == 0).float()
    )


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


def test_unmasked_adds_to_the_image_what_was_found_on_the_masked_one():
    model, (x, y) = tiny_classifier().eval(), images()
    objective = PixelMask(0.4, "fixed", "unmasked")
    masked = x * objective.kept(x)
    leaf = masked.clone().requires_grad_()
    torch.nn.functional.cross_entropy(model(leaf), y, reduction="sum").backward()
    expected = (x + EPS * leaf.grad.sign()).clamp(0, 1)
    torch.testing.assert_close(objective.images(model, x, y, FGSM(EPS)), expected)


def test_copies_are_independent():
    objective = PixelMask(0.4, "fixed")
    twin = copy.deepcopy(objective)
    twin.thresholds.zero_()
    assert objective.thresholds.any()


@pytest.mark.parametrize("ratio", [-0.1, 1, 1.5, float("nan")])
def test_a_ratio_outside_its_range_is_refused(ratio):
    with pytest.raises(ValueError, match=r"in \[0, 1\), got .*Pass --model\.objective\.ratio 0\.4"):
        PixelMask(ratio)


@pytest.mark.parametrize("option", ["mask", "train_input"])
def test_an_unknown_word_is_refused(option):
    with pytest.raises(ValueError, match=rf"{option} must be .* got 'other'.*--model\.objective\.{option}"):
        PixelMask(**{option: "other"})
