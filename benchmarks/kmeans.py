"""k-means over stored features against faiss and scikit-learn: the same points, seeds, iterations and threads.

    python -m benchmarks.kmeans [--points 1000000] [--dim 128] [--k 1000] [--iterations 10] [--turns 3] [--sklearn-iterations 2]

In one run, in turns: ours on one actor of Ray with all threads, as `stages/cluster.py` runs it, and `faiss.Kmeans` over the
same points in memory, without its subsampling. Both begin with the same points as centroids. Only iterations are timed; what
else a clustering costs (reading, centring, seeds) is printed beside it. scikit-learn's Lloyd does fewer iterations, and its
time is scaled up. Memory: the peak of each of several workers against the bytes of its shards.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.record import save
from ssl_ray.cluster import ensure_ray
from ssl_ray.clustering import KMeansConfig, nearest
from ssl_ray.data.kmeans import State, initial, lloyd, prepare
from ssl_ray.data.points import KMeansWorker, PointFile, RayCrew, Setup, dealt, point_files
from ssl_ray.label_files import LabelFile
from ssl_ray.machine import usable_cores
from ssl_ray.scale import local
from ssl_ray.schema import feature_columns
from ssl_ray.storage import Folder

SHARDS = 64


class MeasuredWorker(KMeansWorker):
    """With a look at its own memory."""

    def measured(self, setup: Setup, k: int) -> dict[str, float]:
        """Peak of this process after an assignment, and what its points take, in MiB."""
        self._ready(setup)
        self.step(setup, 0, self._points[:k].copy(), None)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {"peak_mb": round(peak, 1), "points_mb": round(self._points.nbytes / 2**20, 1)}


def make_points(count: int, dim: int, centres: int, seed: int) -> np.ndarray:
    """A mixture with a mean far from zero, as features after a ReLU have."""
    draw = np.random.default_rng(seed)
    where = draw.standard_normal((centres, dim), dtype=np.float32)
    found = draw.standard_normal((count, dim), dtype=np.float32)
    for start in range(0, count, 100_000):
        part = found[start : start + 100_000]
        part += where[draw.integers(0, centres, len(part))]
    return found + np.float32(5)


def write_shards(folder: Folder, points: np.ndarray) -> list[PointFile]:
    files = []
    for shard, part in enumerate(np.array_split(points, SHARDS)):
        file = LabelFile(shard, 0, len(part))
        ids = pa.array([f"{shard}/{row}" for row in range(len(part))])
        folder.write_table(file.name, feature_columns(ids, shard, np.arange(len(part), dtype=np.int32), part))
        files.append(file)
    return point_files(folder, files)


def ours(crew: RayCrew, setup: Setup, config: KMeansConfig, start: np.ndarray, count: int) -> tuple[float, State]:
    """Seconds of the assignments with their updates; as many as faiss does."""
    state = State(centroids=start)
    state = lloyd(crew, setup, config, state, count, save=lambda state: None, tell=lambda line: None)
    return sum(entry["seconds"] for entry in state.history[: config.iterations]), state


def by_faiss(points: np.ndarray, start: np.ndarray, iterations: int) -> tuple[float, np.ndarray]:
    import faiss

    count, dim = points.shape
    theirs = faiss.Kmeans(dim, len(start), niter=iterations, max_points_per_centroid=count, nredo=1)
    begin = time.perf_counter()
    theirs.train(points, init_centroids=start)
    took = time.perf_counter() - begin
    assert theirs.centroids is not None
    return took, theirs.centroids


def by_sklearn(points: np.ndarray, start: np.ndarray, iterations: int) -> float:
    """Seconds an iteration, from runs of two lengths, so that what it does once falls out."""
    from sklearn.cluster import KMeans

    took = []
    for length in (1, 1 + iterations):
        begin = time.perf_counter()
        KMeans(len(start), init=start, n_init=1, max_iter=length, tol=0, algorithm="lloyd", copy_x=False).fit(points)
        took.append(time.perf_counter() - begin)
    return (took[1] - took[0]) / iterations


def inertia(points: np.ndarray, centroids: np.ndarray) -> float:
    return float(nearest(points, centroids)[0].sum(dtype=np.float64))


def gmacs(threads: int) -> float:
    """The machine's own rate in a product of matrices, in 10^9 multiply-adds a second."""
    import torch

    torch.set_num_threads(threads)
    a, b = torch.randn(4096, 1024), torch.randn(1024, 1024)
    a @ b
    begin, turns = time.perf_counter(), 20
    for _ in range(turns):
        a @ b
    return turns * 4096 * 1024 * 1024 / (time.perf_counter() - begin) / 1e9


def memory(folder: Folder, files: list[PointFile], setup: Setup, k: int, workers: int) -> list[dict[str, float]]:
    """Peak of a worker that holds a single file, and of each of several that share all."""
    import ray

    found = []
    remote = ray.remote(num_cpus=0.25)(MeasuredWorker)
    for part in (files[:1], *dealt(files, workers)):
        actor = remote.remote(folder.path, part, 1)
        found.append(ray.get(actor.measured.remote(setup, k)))
        ray.kill(actor)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--k", type=int, default=1000)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--sklearn-iterations", type=int, default=2)
    options = parser.parse_args()
    import faiss

    threads = usable_cores()
    faiss.omp_set_num_threads(threads)
    scale = local()
    ensure_ray(scale)
    points = make_points(options.points, options.dim, options.k, 0)
    config = KMeansConfig(k=options.k, iterations=options.iterations, tolerance=0.0)
    with tempfile.TemporaryDirectory() as base:
        folder = Folder(str(Path(base) / "features"))
        files = write_shards(folder, points)
        crew = RayCrew(folder.path, dealt(files, 1), cpus=scale.cluster_cpus, threads=threads, restarts=0)
        begin = time.perf_counter()
        setup, facts = prepare(crew, pca=None, whiten=False, normalise=False, spherical=False, k=options.k)
        prepared = time.perf_counter() - begin
        begin = time.perf_counter()
        initial(crew, setup, config, 0, facts["points"])
        seeded = time.perf_counter() - begin
        assert setup.centre is not None
        centred = points - setup.centre
        del points
        start = np.ascontiguousarray(centred[:: options.points // options.k][: options.k])
        turns: dict[str, list[float]] = {"ours": [], "faiss": []}
        gap = 0.0
        for _ in range(options.turns):
            seconds, state = ours(crew, setup, config, start, options.points)
            turns["ours"].append(seconds)
            seconds, centroids = by_faiss(centred, start, options.iterations)
            turns["faiss"].append(seconds)
            assert state.best is not None
            gap = inertia(centred, state.best) / inertia(centred, centroids) - 1
            print({name: round(values[-1], 2) for name, values in turns.items()}, f"inertia {gap:+.5%}", flush=True)
        crew.close()
        lloyds = by_sklearn(centred, start, options.sklearn_iterations) * options.iterations
        del centred
        held = memory(folder, files, setup, options.k, 4)
    ratio = statistics.median(a / b for a, b in zip(turns["ours"], turns["faiss"], strict=True))
    work = options.points * options.dim * options.k * options.iterations / 1e9
    median = statistics.median(turns["ours"])
    found: dict[str, Any] = {
        "points": options.points,
        "dim": options.dim,
        "k": options.k,
        "iterations": options.iterations,
        "threads": threads,
        "seconds": {name: [round(value, 3) for value in values] for name, values in turns.items()},
        "ours_to_faiss": round(ratio, 3),
        "inertia_gap": gap,
        "sklearn_s": round(lloyds, 2),
        "sklearn_to_ours": round(lloyds / median, 2),
        "gmac_s": round(work / median, 1),
        "faiss_gmac_s": round(work / statistics.median(turns["faiss"]), 1),
        "matrix_product_gmac_s": round(gmacs(threads), 1),
        "prepare_s": round(prepared, 2),
        "seeds_s": round(seeded, 2),
        "memory": held,
    }
    save("kmeans", found)
    for name, value in found.items():
        print(f"{name:<22} {value}")


if __name__ == "__main__":
    main()
