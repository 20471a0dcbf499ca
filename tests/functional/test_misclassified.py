import pytest
import torch

from lightning_paf.attacks.base import Best
from lightning_paf.functional import cross_entropy, margin, misclassified, predicted
from lightning_paf.functional.geometry import finite_gradient
from lightning_paf.functional.predictions import check_labels, known_finite, undefined, undefined_first

NAN, INF = torch.nan, torch.inf
UNDEFINED = torch.tensor([[NAN, 0, 1], [NAN, NAN, NAN], [INF, 0, 1], [0, INF, 1], [-INF, 0, 1], [9, -INF, 1]])
LARGEST = torch.finfo(torch.float32).max


@pytest.mark.parametrize("row", UNDEFINED)
def test_entries_that_are_not_finite_are_found_in_any_argument(row):
    assert not known_finite(row)
    assert not known_finite(torch.ones(3), row)


def test_finite_entries_are_known_unless_their_sum_overflows():
    assert known_finite(torch.tensor([LARGEST, -LARGEST, 0.0]), torch.empty(0))
    assert not known_finite(torch.tensor([LARGEST, LARGEST]))
    assert not known_finite(torch.ones(3, device="meta"))
    assert not known_finite((torch.ones(3),))


def test_rows_that_are_not_finite_have_no_class_and_are_misclassified():
    assert undefined(UNDEFINED).all()
    assert (predicted(UNDEFINED) == -1).all()
    for label in range(3):
        y = torch.full((6,), label)
        assert misclassified(UNDEFINED, y).all()
        for loss in (cross_entropy, margin):
            assert (undefined_first(loss(UNDEFINED, y), UNDEFINED) == INF).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_finite_rows_have_their_largest_class(dtype):
    largest = torch.finfo(dtype).max
    logits = torch.tensor([[0, largest, -largest], [3, 2, 1], [-1, -1, -2]], dtype=dtype)
    assert predicted(logits).tolist() == [1, 0, 0]
    assert misclassified(logits, torch.tensor([1, 1, 0])).tolist() == [False, True, False]


def test_the_most_likely_class_of_a_distribution_is_the_label():
    y = torch.tensor([[0.2, 0.7, 0.1], [0.5, 0.3, 0.2]])
    assert misclassified(torch.tensor([[0.0, 1, 0], [0, 1, 0]]), y).tolist() == [False, True]


def test_only_undefined_losses_become_infinite():
    logits = torch.tensor([[0.0, 1, 2], [LARGEST, 0, -LARGEST]])
    values = margin(logits, torch.tensor([0, 0]))
    assert torch.equal(undefined_first(values, logits), values)
    values = torch.tensor([1.0, NAN, -INF])
    assert undefined_first(values, {"logits": UNDEFINED}).tolist() == [1, INF, -INF]


def test_best_keeps_an_image_whose_score_is_nan():
    best = Best(torch.zeros(2, 1))
    for value, scores in ((1.0, [5.0, NAN]), (2.0, [NAN, 1e30]), (3.0, [INF, INF])):
        best.update(torch.full((2, 1), value), torch.tensor(scores))
    assert best.x.flatten().tolist() == [2, 1]


def test_gradients_become_finite():
    gradient = torch.tensor([[NAN, 2.0, -3.0], [INF, -INF, 0.5], [-INF, NAN, 0.0], [1.0, -0.0, LARGEST]])
    found = finite_gradient(gradient)
    assert found[:2].tolist() == [[0, 2, -3], [0.5, -0.5, 0.5]]
    assert found[2].sign().tolist() == [-1, 0, 0]
    assert torch.equal(found[3], gradient[3])


@pytest.mark.parametrize(
    ("y", "got"),
    [
        (torch.tensor([0, 1, 7]), "labels from 0 to 7"),
        (torch.tensor([0, 1, -1]), "labels from -1 to 1"),
        (torch.tensor([0, 1, -100]), "labels from -100"),
        (torch.tensor([0, 1, 2], dtype=torch.int32), "torch.int32 of shape \\(3,\\)"),
        (torch.tensor([[0], [1], [2]]), "torch.int64 of shape \\(3, 1\\)"),
        (torch.eye(5, dtype=torch.int64)[:3], "torch.int64 of shape \\(3, 5\\)"),
        (torch.tensor([0, 1]), "torch.int64 of shape \\(2,\\)"),
        (torch.tensor([True, False, True]), "torch.bool"),
        (torch.tensor([0.0, 1.0, 2.0]), "torch.float32 of shape \\(3,\\)"),
        (torch.rand(3, 4), "torch.float32 of shape \\(3, 4\\)"),
    ],
)
def test_invalid_labels_are_refused(y, got):
    with pytest.raises(ValueError, match=rf"y must be class labels of shape \(3,\), int64, .* got {got}"):
        check_labels(y, 3, 5)


def test_valid_labels_are_accepted():
    check_labels(torch.tensor([0, 4]), 2, 5)
    check_labels(torch.tensor([0, 4]), 2)
    check_labels(torch.rand(2, 5), 2, 5)
    check_labels(torch.empty(0, dtype=torch.int64), 0, 5)
