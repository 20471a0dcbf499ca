"""Nearest neighbours and manifolds against direct computation and limits."""

import pytest
import torch

from lightning_paf.functional import neighbours
from lightning_paf.functional.neighbours import manifold_fraction, nearest


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_blocks_give_the_neighbours_of_a_direct_search(rows, monkeypatch):
    monkeypatch.setattr(neighbours, "ROWS", rows)
    queries, references, done = torch.randn(20, 5), torch.randn(30, 5), []
    distances, indices = nearest(queries, references, advance=done.append)
    direct = (queries[:, None] - references).norm(dim=2).min(1)
    torch.testing.assert_close(distances, direct.values)
    assert torch.equal(indices, direct.indices)
    assert sum(done) == 20


def test_equal_bytes_have_the_distance_zero_and_one_level_is_seen():
    references = torch.randint(0, 256, (50, 3072), dtype=torch.uint8)
    references[7, 0] = 100
    queries = references[[7, 7]].clone()
    queries[1, 0] = 101
    distances, indices = nearest(queries, references)
    assert distances.tolist() == [0, 1]
    assert indices.tolist() == [7, 7]


def test_equal_sets_lie_on_their_manifold_and_distant_sets_do_not():
    points = torch.randn(40, 6, dtype=torch.float64)
    assert manifold_fraction(points, points) == 1
    assert manifold_fraction(points, points + 100) == manifold_fraction(points + 100, points) == 0


def test_a_radius_is_the_distance_to_the_kth_neighbour():
    points = torch.tensor([[0.0], [1.0], [3.0]])  # radii: 1, 1, 2 for k = 1; 3, 2, 3 for k = 2
    candidates = torch.tensor([[-1.5], [-0.5], [4.5], [5.5]])
    assert manifold_fraction(points, candidates, k=1) == 2 / 4
    assert manifold_fraction(points, candidates, k=2) == 4 / 4
    with pytest.raises(ValueError, match="more than 3 points for k = 3, got 3"):
        manifold_fraction(points, candidates, k=3)
