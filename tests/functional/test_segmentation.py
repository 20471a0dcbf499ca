"""Prototypes, cosine scores and Dice: closed forms and invariances."""

import pytest
import torch
from torch.nn import functional as F

from lightning_paf.functional.segmentation import (
    SCALE,
    cosine_scores,
    dense_margin,
    dice,
    dice_counts,
    masked_means,
    pixel_cross_entropy,
    predicted_class,
    prototypes,
)


def features(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def masks(*shape: int) -> torch.Tensor:
    return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(1))


def test_a_prototype_is_the_mean_over_the_pixels_of_a_mask():
    support, mask = features(1, 1, 1, 5, 6, 7), masks(1, 1, 1, 6, 7)
    found = prototypes(support, mask)[0]
    pixels = support[0, 0, 0].flatten(1)
    for label in (0, 1):
        expected = pixels[:, mask.flatten() == label].mean(1)
        torch.testing.assert_close(found[label], expected, atol=1e-4, rtol=1e-4)


def test_masked_means_equal_those_of_interpolated_features():
    z, mask = features(2, 3, 4, 5), masks(2, 1, 12, 17).bool()
    large = F.interpolate(z, (12, 17), mode="bilinear")
    expected = (large * mask).sum((2, 3)) / (mask.sum((2, 3)) + 1e-5)
    torch.testing.assert_close(masked_means(z, mask)[:, 0], expected, atol=1e-5, rtol=1e-4)
    assert not masked_means(z, torch.zeros_like(mask)).any()


def test_prototypes_do_not_depend_on_the_order_of_shots_and_average_them():
    support, mask = features(2, 2, 3, 4, 5, 5), masks(2, 2, 3, 10, 10)
    mask[:, 1] *= 2
    found, order = prototypes(support, mask), [2, 0, 1]
    assert found.shape == (2, 3, 4)
    torch.testing.assert_close(prototypes(support[:, :, order], mask[:, :, order]), found)
    one, its_mask = support[:, :, :1], mask[:, :, :1]
    repeated = prototypes(one.repeat(1, 1, 4, 1, 1, 1), its_mask.repeat(1, 1, 4, 1, 1))
    torch.testing.assert_close(repeated, prototypes(one, its_mask))


def test_scores_are_scaled_cosines():
    z, centres = features(2, 8, 4, 4), features(2, 3, 8)
    found = cosine_scores(z, centres)
    assert found.abs().max() <= SCALE * (1 + 1e-6)
    torch.testing.assert_close(cosine_scores(7.5 * z, centres), found)
    torch.testing.assert_close(cosine_scores(centres[:, 0, :, None, None], centres)[:, 0], torch.full((2, 1, 1), SCALE))


def test_swapped_masks_swap_the_scores():
    support, mask, query = features(1, 1, 2, 6, 4, 4), masks(1, 1, 2, 8, 8), features(1, 6, 4, 4)
    scores = cosine_scores(query, prototypes(support, mask))
    torch.testing.assert_close(cosine_scores(query, prototypes(support, 1 - mask)), scores.flip(1))


def test_orthogonal_features_are_segmented_exactly():
    support_mask, query_mask = masks(1, 1, 1, 6, 6), masks(1, 6, 6).flip(2)
    vectors = torch.eye(2)
    scores = cosine_scores(
        vectors[query_mask].permute(0, 3, 1, 2), prototypes(vectors[support_mask].movedim(-1, 3), support_mask)
    )
    assert dice(dice_counts(predicted_class(scores), query_mask)).item() == 1


def test_dice_identities():
    mask, empty = masks(1, 9, 9), torch.zeros(1, 9, 9, dtype=torch.int64)
    other = 1 - mask
    found = [dice(dice_counts(p, m)).item() for p, m in [(mask, mask), (other, mask), (empty, empty), (mask, empty)]]
    assert found == [1, 0, 1, 0]
    both, half = torch.ones_like(mask), empty.clone()
    half[:, :, :3] = 1
    assert dice(dice_counts(both, half)).item() == pytest.approx(2 * 27 / (81 + 27))
    ignored = torch.where(half == 1, 255, both)
    assert dice_counts(both, ignored).tolist() == [[54, 54, 54]]


def test_ignored_pixels_have_no_effect():
    scores, mask = features(2, 2, 5, 5), masks(2, 5, 5)
    hidden = mask.clone()
    hidden[:, :2] = 255
    expected = F.cross_entropy(scores[:, :, 2:], mask[:, 2:], reduction="none").mean((1, 2))
    torch.testing.assert_close(pixel_cross_entropy(scores, hidden), expected)
    assert pixel_cross_entropy(scores, torch.full_like(mask, 255)).tolist() == [0, 0]
    torch.testing.assert_close(dense_margin(scores, hidden), dense_margin(scores[:, :, 2:], mask[:, 2:]))


def test_the_dense_margin_counts_correct_pixels_only():
    scores = torch.tensor([[[3.0, 0.0, 5.0]], [[1.0, 2.0, 1.0]]]).transpose(0, 1)  # classes 0, 1, 0
    assert dense_margin(scores, torch.tensor([[0, 0, 1]])).tolist() == [-2]
    assert dense_margin(scores, torch.tensor([[1, 0, 1]])).tolist() == [0]
