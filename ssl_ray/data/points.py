"""Points of k-means: workers hold those of their feature files, and a crew asks them all.

A worker is a Ray actor, or lives in the job's process. Its memory follows its files. Ray starts a dead one anew and repeats the
call: it reads its files again, and what it knew is computed from what every call brings along (`Setup`, the candidates so far,
the centroids before).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ssl_ray.clustering import nearest, parts_of, round_to_grid, sums_by_label, uniforms
from ssl_ray.label_files import LabelFile
from ssl_ray.machine import use_threads
from ssl_ray.storage import Folder

PROJECTED_AT_ONCE = 1024
"""Vectors of one product of matrices."""


@dataclass(frozen=True)
class PointFile:
    """A file of features, and the place of its first point among all."""

    name: str
    first: int
    rows: int


@dataclass(frozen=True)
class Setup:
    """How stored features become points: (x - mean) @ projection, then length one, then the grid."""

    mean: np.ndarray | None = None  # float32 [D]
    projection: np.ndarray | None = None  # float32 [D, d]
    normalise: bool = False
    centre: np.ndarray | None = None  # float32 [d], taken off last
    unit: float | None = None  # of the grid


def steps(setup: Setup) -> list[tuple[str, Any]]:
    """What is done to features, in order."""
    found = [(name, getattr(setup, name)) for name in ("mean", "projection", "normalise", "centre", "unit")]
    return [(name, value) for name, value in found if value is not None and value is not False]


def transformed(vectors: np.ndarray, todo: Sequence[tuple[str, Any]]) -> np.ndarray:
    """Vectors after some steps, float32 [n, D] -> [n, d]. In place, where the width stays."""
    for name, value in todo:
        if name == "projection":
            vectors = _projected(vectors, value)
        elif name == "unit":
            round_to_grid(vectors, value)
        elif name == "normalise":
            for rows in parts_of(vectors):
                part = vectors[rows]
                part /= np.linalg.norm(part, axis=1, keepdims=True).clip(min=1e-12)
        else:
            vectors -= value
    return vectors


def _projected(vectors: np.ndarray, projection: np.ndarray) -> np.ndarray:
    """(x @ projection), a product of matrices of one shape whatever the number of vectors, by torch.

    numpy's OpenBLAS sums a row in an order that hangs on its place, on processors without AVX-512: then a point would depend on
    which files a worker holds, and on whether it was killed.
    """
    import torch

    found = np.empty((len(vectors), projection.shape[1]), np.float32)
    filled, by = torch.zeros(PROJECTED_AT_ONCE, len(projection)), torch.from_numpy(np.ascontiguousarray(projection))
    for start in range(0, len(vectors), PROJECTED_AT_ONCE):
        part = vectors[start : start + PROJECTED_AT_ONCE]
        filled[: len(part)] = torch.from_numpy(part)
        found[start : start + len(part)] = (filled @ by)[: len(part)].numpy()
    return found


def read_vectors(folder: Folder, name: str) -> np.ndarray:
    """The vectors of one file, float32 [n, D], writeable."""
    file = LabelFile.parse(name)
    table = folder.read_table(name, ["features"]) if file is None else file.read(folder, ["features"])
    column = table["features"].combine_chunks()
    column = column.chunk(0) if hasattr(column, "chunk") else column
    return column.flatten().to_numpy().reshape(-1, column.type.list_size).astype(np.float32)


class KMeansWorker:
    """Some of the files: their points in memory, and all that is asked of points."""

    def __init__(self, folder: str, files: Sequence[PointFile], threads: int):
        self._folder, self._files = Folder(folder), list(files)
        self._setup: Setup | None = None
        self._points = np.empty((0, 0), np.float32)
        self._index = np.empty(0, np.int64)
        self._not_finite = 0
        self._labels: np.ndarray | None = None
        self._labelled = -1  # the iteration that the labels belong to
        self._distance = np.empty(0, np.float32)  # to the nearest candidate so far
        self._candidate = np.empty(0, np.int64)  # which one that is
        self._measured = np.empty((0, 0), np.float32)  # the candidates so far
        use_threads(threads, "scale.cluster_threads")

    def _ready(self, setup: Setup) -> None:
        """Make points of the features: from what is here where that is possible, from the files otherwise."""
        wanted, have = steps(setup), [] if self._setup is None else steps(self._setup)
        begun = self._setup is not None and len(have) <= len(wanted)
        if begun and all(_same(a, b) for a, b in zip(have, wanted, strict=False)):
            if len(have) == len(wanted):
                return
            self._points = transformed(self._points, wanted[len(have) :])
        else:
            self._read(wanted)
        self._setup, self._labels, self._labelled, self._measured = setup, None, -1, np.empty((0, 0), np.float32)

    def _read(self, todo: Sequence[tuple[str, Any]]) -> None:
        total = sum(file.rows for file in self._files)
        points, index, at, self._not_finite = np.empty((0, 0), np.float32), np.empty(total, np.int64), 0, 0
        for file in self._files:
            vectors = read_vectors(self._folder, file.name)
            good = np.isfinite(vectors).all(axis=1)
            self._not_finite += int((~good).sum())
            part = transformed(vectors if good.all() else vectors[good], todo)
            if not points.size:
                points = np.empty((total, part.shape[1]), np.float32)
            points[at : at + len(part)] = part
            index[at : at + len(part)] = file.first + np.flatnonzero(good)
            at += len(part)
        self._points, self._index = points[:at], index[:at]

    def moments(self, setup: Setup) -> dict[str, Any]:
        """Number of points, of rows that are not finite, and of every coordinate the sum, the least and the largest."""
        self._ready(setup)
        width = self._points.shape[1]
        total, low, high = np.zeros(width, np.float64), np.full(width, np.inf), np.full(width, -np.inf)
        for rows in parts_of(self._points):
            part = self._points[rows]
            total += part.sum(axis=0, dtype=np.float64)
            low, high = np.minimum(low, part.min(axis=0)), np.maximum(high, part.max(axis=0))
        return {"count": len(self._points), "not_finite": self._not_finite, "sum": total, "low": low, "high": high}

    def scatter(self, setup: Setup) -> np.ndarray:
        """Sum of x x^T over the points, float64 [d, d]."""
        import torch

        self._ready(setup)
        width = self._points.shape[1]
        total = np.zeros((width, width), np.float64)
        for rows in parts_of(self._points):
            part = torch.from_numpy(self._points[rows]).double()  # on torch's threads
            total += (part.T @ part).numpy()
        return total

    def squares(self, setup: Setup) -> float:
        """Sum of |x|^2, float64."""
        self._ready(setup)
        return sum(float((self._points[rows].astype(np.float64) ** 2).sum()) for rows in parts_of(self._points))

    def smallest(self, setup: Setup, count: int, address: tuple[int | str, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The points with the smallest draws: draws, places int64, points [m, d], at most `count` of them."""
        self._ready(setup)
        draw = uniforms(address, self._index)
        kept = np.argpartition(draw, count - 1)[:count] if count < len(draw) else np.arange(len(draw))
        return draw[kept], self._index[kept], self._points[kept]

    def cost(self, setup: Setup, candidates: np.ndarray) -> float:
        """Sum of squared distances to the nearest of all candidates so far; only new ones are looked at."""
        self._ready(setup)
        # Other seeds may have as many candidates: only those that were really measured are left out.
        known = len(self._measured)
        known = known if known and np.array_equal(candidates[:known], self._measured) else 0
        new = candidates[known:]
        if not known:
            self._distance = np.full(len(self._points), np.inf, np.float32)
            self._candidate = np.zeros(len(self._points), np.int64)
        if len(new):
            distance, which = nearest(self._points, new)
            nearer = distance < self._distance
            self._candidate[nearer] = which[nearer] + known
            np.minimum(self._distance, distance, out=self._distance)
        self._measured = candidates
        return float(self._distance.sum(dtype=np.float64))

    def draw(
        self, setup: Setup, candidates: np.ndarray, factor: float, address: tuple[int | str, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Points drawn with probability min(1, factor * distance^2), each for itself: places and points."""
        self.cost(setup, candidates)
        drawn = np.flatnonzero(uniforms(address, self._index) < factor * self._distance.astype(np.float64))
        return self._index[drawn], self._points[drawn]

    def weights(self, setup: Setup, candidates: np.ndarray) -> np.ndarray:
        """How many points have each candidate as their nearest, int64 [m]."""
        self.cost(setup, candidates)
        return np.bincount(self._candidate, minlength=len(candidates)).astype(np.int64)

    def sizes(self, setup: Setup, centroids: np.ndarray) -> np.ndarray:
        """How many points have each centroid as their nearest, int64 [k]."""
        self._ready(setup)
        return np.bincount(nearest(self._points, centroids, distances=False)[1], minlength=len(centroids)).astype(np.int64)

    def step(
        self, setup: Setup, iteration: int, centroids: np.ndarray, before: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """Assign: sums float64 [k, d], counts int64 [k], and how many points have another label than before.

        Args:
            before: the centroids of the iteration before, for a worker that was started anew.
        """
        self._ready(setup)
        old = self._labels
        if old is None or self._labelled != iteration - 1:
            old = None if before is None else nearest(self._points, before, distances=False)[1]
        labels = nearest(self._points, centroids, distances=False)[1]
        moved = len(labels) if old is None else int((labels != old).sum())
        self._labels, self._labelled = labels, iteration
        return (*sums_by_label(self._points, labels, len(centroids)), moved)

    def farthest(self, setup: Setup, centroids: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The points farthest from their centroids, each once: squared distances, places, points; in falling order."""
        self._ready(setup)
        distance, _ = nearest(self._points, centroids)
        order = np.lexsort((self._index, -distance))
        order = order[: int((distance > 0).sum())]
        _, first = np.unique(self._points[order[: 8 * count]], axis=0, return_index=True)
        if len(first) < count and len(order) > 8 * count:
            _, first = np.unique(self._points[order], axis=0, return_index=True)
        order = order[np.sort(first)][:count]
        return distance[order], self._index[order], self._points[order]


def _same(a: tuple[str, Any], b: tuple[str, Any]) -> bool:
    return a[0] == b[0] and bool(np.array_equal(a[1], b[1]))


class Crew(Protocol):
    """All workers at once."""

    def ask(self, method: str, *arguments: Any) -> list[Any]:
        """What each worker answers, in the order of their files."""
        ...


class LocalCrew:
    """Workers in this process, one after the other."""

    def __init__(self, workers: Sequence[KMeansWorker]):
        self._workers = workers

    def ask(self, method: str, *arguments: Any) -> list[Any]:
        return [getattr(worker, method)(*arguments) for worker in self._workers]


class RayCrew:
    """Actors. Large arguments are put into the object store once, for all of them."""

    def __init__(self, folder: str, parts: Sequence[Sequence[PointFile]], *, cpus: float, threads: int, restarts: int):
        import ray

        remote = ray.remote(num_cpus=cpus, max_restarts=restarts, max_task_retries=restarts)(KMeansWorker)
        self.actors = [remote.remote(folder, part, threads) for part in parts]
        self._held: tuple[Setup | None, Any] = (None, None)

    def ask(self, method: str, *arguments: Any) -> list[Any]:
        import ray

        from ssl_ray.cluster import plain_errors

        given = [self._put(value) for value in arguments]
        with plain_errors():
            found: list[Any] = ray.get([getattr(actor, method).remote(*given) for actor in self.actors])
        return found

    def _put(self, value: Any) -> Any:
        import ray

        if isinstance(value, Setup):
            if self._held[0] is not value:
                self._held = (value, ray.put(value))
            return self._held[1]
        return ray.put(value) if isinstance(value, np.ndarray) else value

    def close(self) -> None:
        import ray

        for actor in self.actors:
            ray.kill(actor)


def dealt(files: Sequence[PointFile], workers: int) -> list[list[PointFile]]:
    """Runs of files for each worker, of nearly as many rows each; no worker goes empty."""
    workers = max(1, min(workers, len(files)))
    total, parts, seen = sum(file.rows for file in files), [[] for _ in range(workers)], 0  # type: ignore[var-annotated]
    for number, file in enumerate(files):
        wanted = min(workers - 1, int(workers * (seen + file.rows / 2) / max(1, total)))
        # Every worker gets a file: neither far ahead of the files that are left, nor behind them.
        wanted = max(wanted, workers - (len(files) - number))
        last = max((i for i, part in enumerate(parts) if part), default=-1)
        parts[min(wanted, last + 1)].append(file)
        seen += file.rows
    return parts


def point_files(folder: Folder, files: Sequence[LabelFile]) -> list[PointFile]:
    """Feature files with the number of their rows, and the place of the first among all."""
    with ThreadPoolExecutor(16) as pool:
        rows = list(pool.map(lambda file: folder.num_rows(file.name), files))
    starts = np.cumsum([0, *rows])
    return [PointFile(file.name, int(a), n) for file, a, n in zip(files, starts, rows, strict=False)]
