"""k-means in parts: what is computed of one part of the points, and what follows from the sums over all of them.

Lloyd's algorithm. No Ray and no files: `data/points.py` holds the points.

Points are centred, and then rounded to a grid so coarse that any sum of them is exact in float64 (`grid_unit`; far finer than
the error of a float32 distance). So sums do not depend on how points are cut to shards, which worker holds them, or in which
order they are added: the same points give the same centroids, bit for bit, on any number of workers and after any restart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from ssl_ray.config import Config
from ssl_ray.errors import SourceError
from ssl_ray.randomness import seed_of

VALUES_AT_ONCE = 1 << 22
"""Coordinates that are summed at a time: 32 MiB in float64."""

CELLS = 1 << 27
"""Cells of the grid up to the largest coordinate, at most: float32 itself has 2 ** 24."""


class KMeansConfig(Config):
    """What is computed; every point counts, unless `init_sample` says otherwise of the seeds."""

    k: Annotated[int, Field(ge=1)] = 2000
    iterations: Annotated[int, Field(ge=1)] = 50  # at most
    tolerance: Annotated[float, Field(ge=0)] = 1e-4  # stops where inertia falls by a smaller share; 0: where no point moves
    init: Literal["k-means||", "k-means++", "random"] = "k-means||"
    rounds: Annotated[int, Field(ge=1)] = 2  # k-means||: passes over the points, as Spark's default
    oversampling: Annotated[float, Field(gt=0)] = 2.0  # k-means||: candidates of a pass, times k
    init_sample: Annotated[int, Field(ge=1)] | None = None  # k-means++: points that seeds are drawn among; None: all
    restarts: Annotated[int, Field(ge=1)] = 1  # from other seeds; the least inertia is kept
    spherical: bool = False  # points and centroids on the unit sphere
    seed: int = 0

    @model_validator(mode="after")
    def _sample(self) -> KMeansConfig:
        if self.init_sample is not None and self.init != "k-means++":
            raise ValueError(f"init_sample belongs to init=k-means++; init={self.init} looks at every point")
        if self.init_sample is not None and self.init_sample < self.k:
            raise ValueError(f"init_sample {self.init_sample} gives fewer points than the {self.k} seeds; raise it")
        return self


def parts_of(points: np.ndarray, start: int = 0, stop: int | None = None) -> Iterator[slice]:
    """Runs of rows that are few enough for copies of them."""
    rows = max(1, VALUES_AT_ONCE // max(1, points.shape[1]))
    stop = len(points) if stop is None else stop
    for begin in range(start, stop, rows):
        yield slice(begin, min(begin + rows, stop))


def grid_unit(largest: float, count: int) -> float:
    """A power of two: sums of `count` multiples of it, each at most `largest`, are exact in float64."""
    cells = min(CELLS, 2 ** (52 - max(1, math.ceil(math.log2(max(2, count))))))
    return float(2.0 ** (math.frexp(largest)[1] - int(math.log2(cells))))


def round_to_grid(points: np.ndarray, unit: float) -> None:
    """Round float32 points to multiples of `unit`, in place. A power of two scales without error."""
    for rows in parts_of(points):
        part = points[rows]
        np.multiply(part, np.float32(1 / unit), out=part)
        np.rint(part, out=part)
        np.multiply(part, np.float32(unit), out=part)


CELLS_AT_ONCE = 1 << 21
"""Distances that are held at a time: eight MiB, which a core's cache nearly holds."""


def rows_at_once(k: int) -> int:
    """Points whose distances to k centroids are computed together; a power of two that follows from k alone."""
    return int(2 ** min(13, max(6, math.floor(math.log2(CELLS_AT_ONCE / k)))))


def nearest(points: np.ndarray, centroids: np.ndarray, distances: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """The nearest centroid of every point, on torch's threads.

    A product of matrices of one shape, whatever the number of points: the last rows are filled up, so that near ties fall alike
    wherever a point stands. On two cores with AVX-512 whole iterations are twice as fast as faiss's (benchmarks/kmeans.py).

    Args:
        points: float32 [n, d], near the origin: the product form of distances cancels where a mean is large.
        centroids: float32 [k, d].
        distances: without them, zeros are returned in their place.

    Returns:
        Squared distances float32 [n], and indices int64 [n].
    """
    import torch

    count, rows = len(points), rows_at_once(len(centroids))
    distance, label = np.zeros(count, np.float32), np.empty(count, np.int64)
    c = torch.from_numpy(np.array(centroids, np.float32))
    squares, turned = c.square().sum(dim=1), c.T.contiguous()
    cells = torch.empty(rows, len(c))
    for start in range(0, count, rows):
        x = torch.from_numpy(points[start : start + rows])
        held = len(x)
        if held < rows:
            x = torch.cat([x, x.new_zeros(rows - held, x.shape[1])])
        torch.addmm(squares, x, turned, alpha=-2, out=cells)
        least, which = cells.min(dim=1)
        label[start : start + held] = which[:held].numpy()
        if distances:
            distance[start : start + held] = (least + x.square().sum(dim=1)).clamp_(min=0)[:held].numpy()
    return distance, label


def sums_by_label(points: np.ndarray, labels: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the points of every cluster: float64 [k, d], int64 [k]. On as many threads as torch has."""
    import torch

    def of(part: slice) -> torch.Tensor:
        sums = torch.zeros(k, points.shape[1], dtype=torch.float64)
        for piece in parts_of(points, part.start, part.stop):
            sums.index_add_(0, torch.from_numpy(labels[piece]), torch.from_numpy(points[piece]).double())
        return sums

    threads = torch.get_num_threads()
    edges = np.linspace(0, len(points), threads + 1).astype(int).tolist()
    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(of, [slice(a, b) for a, b in pairwise(edges)]))
    return torch.stack(parts).sum(dim=0).numpy(), np.bincount(labels, minlength=k).astype(np.int64)


def inertia_of(centroids: np.ndarray, sums: np.ndarray, counts: np.ndarray, squares: float) -> float:
    """Sum of squared distances to the own centroid, from sums alone, in float64.

    Args:
        squares: sum of |x|^2 over all points.
    """
    own = centroids.astype(np.float64)
    return max(0.0, squares - 2 * float((own * sums).sum()) + float(counts @ (own * own).sum(axis=1)))


def next_centroids(centroids: np.ndarray, sums: np.ndarray, counts: np.ndarray, spherical: bool) -> np.ndarray:
    """Means of the clusters, float32 [k, d]; an empty one keeps its centroid."""
    means = sums / np.maximum(counts, 1)[:, None]
    if spherical:
        means = means / np.linalg.norm(means, axis=1, keepdims=True).clip(min=1e-12)
    return np.where(counts[:, None] > 0, means, centroids).astype(np.float32)


def uniforms(address: tuple[int | str, ...], index: np.ndarray) -> np.ndarray:
    """A draw in [0, 1) for every index, float64 [n], which does not depend on the others (splitmix64 of a counter)."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed_of(*address)) + (index.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


def seed_centroids(points: np.ndarray, weights: np.ndarray | None, k: int, address: tuple[int | str, ...]) -> np.ndarray:
    """k-means++ seeds (Arthur and Vassilvitskii, 2007) among points with weights, by scikit-learn: float32 [k, d].

    Raises:
        SourceError: there are fewer points than seeds.
    """
    if len(points) < k:
        raise SourceError(f"k={k} seeds are asked for among {len(points)} points; lower cluster.k, or take more points")
    from sklearn.cluster import kmeans_plusplus

    state = np.random.RandomState(seed_of(*address) % 2**32)
    found, _ = kmeans_plusplus(points.astype(np.float64), k, sample_weight=weights, random_state=state)
    return found.astype(np.float32)


def imbalance(counts: np.ndarray) -> float:
    """k * sum(n_i^2) / n^2: 1 where all clusters are of one size, k where one holds everything (faiss's measure)."""
    total = float(counts.sum())
    return float(len(counts) * (counts.astype(np.float64) ** 2).sum() / total**2) if total else 0.0


def agreement(table: np.ndarray) -> dict[str, float]:
    """How well clusters and classes agree: normalised mutual information (arithmetic mean) and purity.

    Args:
        table: images by class and cluster, int64 [C, k].
    """
    total = table.sum()
    if not total:
        return {}
    joint = table / total
    classes, clusters = joint.sum(axis=1), joint.sum(axis=0)
    mutual = _entropy(classes) + _entropy(clusters) - _entropy(joint.reshape(-1))
    mean = (_entropy(classes) + _entropy(clusters)) / 2
    return {"nmi": float(max(0.0, mutual) / mean) if mean > 0 else 1.0, "purity": float(joint.max(axis=0).sum())}


def _entropy(shares: np.ndarray) -> float:
    positive = shares[shares > 0]
    return float(-(positive * np.log(positive)).sum())
