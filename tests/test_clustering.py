"""k-means in parts: the grid, seeds, sums, repair and scores, against slow transcriptions and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score

from ssl_ray.clustering import (
    KMeansConfig,
    agreement,
    grid_unit,
    imbalance,
    inertia_of,
    nearest,
    next_centroids,
    round_to_grid,
    seed_centroids,
    sums_by_label,
    uniforms,
)
from ssl_ray.data.points import transformed
from ssl_ray.errors import SourceError


def points(n: int = 3000, d: int = 16, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return (draw.standard_normal((n, d)) + 4 * draw.standard_normal((8, d))[draw.integers(0, 8, n)]).astype(np.float32)


class TestGrid:
    @pytest.mark.parametrize(("largest", "count"), [(1.0, 10), (3.7, 1_000_000), (1e-5, 3), (900.0, 2**40)])
    def test_sums_of_all_are_exact(self, largest: float, count: int) -> None:
        unit = grid_unit(largest, count)
        assert unit == 2.0 ** round(np.log2(unit))
        assert count * largest / unit <= 2**53
        assert unit <= largest * 2.0**-10

    def test_any_order_gives_the_same_bits(self) -> None:
        x = points(50_000, 3) * np.array([1e-4, 1.0, 300.0], np.float32)
        naive = x.copy()
        round_to_grid(x, grid_unit(float(np.abs(x).max()), len(x)))
        order = np.random.default_rng(1).permutation(len(x))

        def running(values: np.ndarray) -> np.ndarray:
            return np.add.accumulate(values.astype(np.float64), axis=0)[-1]

        assert np.array_equal(running(x), running(x[order]))
        assert not np.array_equal(running(naive), running(naive[order])), "the grid is what does it"

    def test_it_moves_no_coordinate_visibly(self) -> None:
        x = points()
        rounded = x.copy()
        round_to_grid(rounded, grid_unit(float(np.abs(x).max()), len(x)))
        assert np.abs(rounded - x).max() <= np.abs(x).max() * 2.0**-26


class TestParts:
    def test_nearest_is_the_argmin_in_float64(self) -> None:
        x, c = points(), points(40, seed=1)
        distance, label = nearest(x, c)
        slow = ((x[:, None].astype(np.float64) - c[None]) ** 2).sum(axis=2)
        assert np.array_equal(label, slow.argmin(axis=1))
        assert np.allclose(distance, slow.min(axis=1), rtol=1e-4)

    def test_a_point_alone_is_projected_as_among_others(self) -> None:
        """numpy's product does not do that on every processor: rows of a later block are summed in another order."""
        rng = np.random.default_rng(5)
        vectors, projection = (rng.standard_normal(shape).astype(np.float32) for shape in ((5000, 512), (512, 16)))
        todo = [("projection", projection)]
        whole = transformed(vectors.copy(), todo)
        np.testing.assert_allclose(whole, vectors.astype(np.float64) @ projection, atol=1e-3)
        for start, stop in ((0, 1), (1999, 2000), (3000, 5000), (4999, 5000)):
            assert (transformed(vectors[start:stop].copy(), todo) == whole[start:stop]).all()

    def test_a_point_alone_is_assigned_as_among_others(self) -> None:
        x, c = points(), points(40, seed=1)
        together = nearest(x, c)[1]
        assert np.array_equal(together, np.concatenate([nearest(part, c)[1] for part in np.array_split(x, 700)]))

    def test_sums_and_counts(self) -> None:
        x, labels = points(), np.random.default_rng(0).integers(0, 7, 3000)
        sums, counts = sums_by_label(x, labels, 9)
        for cluster in range(9):
            mine = x[labels == cluster].astype(np.float64)
            assert np.allclose(sums[cluster], mine.sum(axis=0))
            assert counts[cluster] == len(mine)

    def test_inertia_from_sums_is_the_sum_of_squares(self) -> None:
        x, c = points(), points(40, seed=1)
        _, label = nearest(x, c)
        sums, counts = sums_by_label(x, label, 40)
        slow = ((x.astype(np.float64) - c[label]) ** 2).sum()
        assert inertia_of(c, sums, counts, float((x.astype(np.float64) ** 2).sum())) == pytest.approx(slow, rel=1e-9)

    def test_an_empty_cluster_stays_and_a_sphere_stays_one(self) -> None:
        sums, counts = np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([5, 0])
        old = np.array([[9.0, 9.0], [1.0, 0.0]], np.float32)
        assert np.allclose(next_centroids(old, sums, counts, spherical=False), [[0.6, 0.8], [1.0, 0.0]])
        assert np.allclose(np.linalg.norm(next_centroids(old, 7 * sums, counts, spherical=True), axis=1), 1.0)


class TestDraws:
    def test_a_draw_belongs_to_its_place(self) -> None:
        whole = uniforms((3, "a"), np.arange(1000))
        assert np.array_equal(whole[[5, 900, 17]], uniforms((3, "a"), np.array([5, 900, 17])))
        assert not np.array_equal(whole, uniforms((4, "a"), np.arange(1000)))

    def test_they_are_uniform(self) -> None:
        draws = uniforms((0,), np.arange(200_000))
        assert draws.min() >= 0
        assert draws.max() < 1
        assert np.allclose(np.histogram(draws, 20, (0, 1))[0] / 200_000, 0.05, atol=0.003)
        assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.01

    def test_seeds_are_points_and_heavy_ones_are_preferred(self) -> None:
        x = points(500)
        seeds = seed_centroids(x, None, 20, (0, "s"))
        assert {row.tobytes() for row in seeds} <= {row.tobytes() for row in x}
        assert np.array_equal(seeds, seed_centroids(x, None, 20, (0, "s")))
        weights = np.where(np.arange(500) < 5, 1.0, 0.0)
        assert {row.tobytes() for row in seed_centroids(x, weights, 3, (0, "w"))} <= {row.tobytes() for row in x[:5]}
        with pytest.raises(SourceError, match=r"k=20 .* among 7 points"):
            seed_centroids(x[:7], None, 20, (0,))


class TestScores:
    def test_against_scikit_learn(self) -> None:
        draw = np.random.default_rng(0)
        truth = draw.integers(0, 5, 4000)
        cluster = np.where(draw.random(4000) < 0.6, truth * 2, draw.integers(0, 12, 4000))
        table = np.zeros((5, 12), np.int64)
        np.add.at(table, (truth, cluster), 1)
        found = agreement(table)
        assert found["nmi"] == pytest.approx(normalized_mutual_info_score(truth, cluster), abs=1e-12)
        assert found["purity"] == pytest.approx(sum(np.bincount(truth[cluster == c]).max() for c in range(12)) / 4000)

    def test_extremes(self) -> None:
        assert agreement(np.eye(4, dtype=np.int64) * 10) == {"nmi": pytest.approx(1.0), "purity": 1.0}
        assert agreement(np.full((4, 3), 10))["nmi"] == pytest.approx(0.0, abs=1e-12)
        assert agreement(np.zeros((4, 3), np.int64)) == {}
        assert imbalance(np.full(8, 5)) == pytest.approx(1.0)
        assert imbalance(np.array([40, 0, 0, 0])) == pytest.approx(4.0)


def test_lloyd_from_the_same_seeds_is_scikit_learns() -> None:
    x = points()
    start = x[:25].copy()
    c = start
    for _ in range(6):
        _, label = nearest(x, c)
        sums, counts = sums_by_label(x, label, 25)
        c = next_centroids(c, sums, counts, spherical=False)
    theirs = KMeans(25, init=start, n_init=1, algorithm="lloyd", max_iter=6, tol=0).fit(x)
    assert np.allclose(c, theirs.cluster_centers_, atol=1e-3)


class TestSettings:
    def test_a_sample_is_only_where_it_was_asked_for(self) -> None:
        with pytest.raises(ValueError, match="init_sample belongs to"):
            KMeansConfig(k=3, init_sample=100)
        with pytest.raises(ValueError, match="fewer points than the 200 seeds"):
            KMeansConfig(k=200, init="k-means++", init_sample=100)
