"""Near copies: thresholds, rates and pictures on points of a line."""

import pytest
import torch

from lightning_paf.analysis.leaks import draw_distances, draw_pairs, find_leaks, leak_content, leak_table, near_test


def line(*values):
    return torch.tensor(values, dtype=torch.float32)[:, None]


TRAIN = line(*range(0, 1000, 10))
TEST = line(*(10 * n + (n + 1) / 100 for n in range(100)))  # 0.01 to 1.00 from a training image


def leaks(*pool, **options):
    return find_leaks({"pool": line(*pool), "training": TRAIN, "test": TEST}, **options)


def test_the_threshold_is_the_quantile_of_distances_between_real_images():
    for quantile in (0.1, 0.5):
        found = leaks(5.0, quantile=quantile)["training"]
        assert found.threshold == pytest.approx(0.01 + quantile * 0.99, abs=1e-3)
        assert found.expected == pytest.approx(quantile, abs=0.011)
    assert leaks(5.0, quantile=1.0)["test"].expected == 1


def test_rates_have_exact_intervals_and_neighbours_are_named():
    found = leaks(30.02, 30.05, 34.0, 500.25, threshold=0.06)
    assert found["training"].near.tolist() == [True, True, False, False]
    assert found["training"].indices.tolist() == [3, 3, 3, 50]
    assert found["test"].near.tolist() == [True, True, False, False]  # test image 3 is at 30.04
    rate = found["training"].rate
    assert (rate.correct, rate.total) == (2, 4)
    assert (rate.low, rate.high) == pytest.approx((0.0676, 0.9324), abs=1e-4)
    assert near_test({"a": leaks(30.0, threshold=1.0), "b": leaks(3.0, threshold=1.0)}).tolist() == [True]


def test_the_scale_is_that_of_distances_and_threshold():
    found = leaks(33.0, threshold=0.5, scale=0.1)["training"]
    assert found.distances.tolist() == pytest.approx([0.3])
    assert found.near.all()


def test_text_content_and_figures():
    found = {"pixels": leaks(30.02, 34.0, threshold=0.06)}
    printed = leak_table(found)
    assert max(map(len, printed)) <= 80
    assert printed[2].split()[:5] == ["training,", "pixels", "0.06", "1", "50.00"]
    assert leak_content(found)["pixels"]["training"]["closest"][0]["sample"] == 0
    images = {name: torch.zeros(100, 4, 4, 2, dtype=torch.uint8).numpy() for name in ("pool", "training", "test")}
    texts = [text.get_text() for axes in draw_pairs(found, images).get_axes() for text in axes.texts]
    assert texts.count("sample 0") == 2
    assert "training 3\n0.02" in texts
    assert len(draw_distances(found, {"pixels": "distance"}).get_axes()) == 2
