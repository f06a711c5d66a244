"""Lloyd's algorithm over points that a crew holds: the driver sees sums, and the few points that seeds are drawn among."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ssl_ray.clustering import KMeansConfig, grid_unit, inertia_of, next_centroids, seed_centroids
from ssl_ray.data.points import Crew, Setup
from ssl_ray.errors import SourceError


@dataclass
class State:
    """Where a clustering stands: all that its next iteration depends on."""

    restart: int = 0
    iteration: int = 0  # of this restart, done
    centroids: np.ndarray | None = None
    before: np.ndarray | None = None  # those that the last labels belong to
    best: np.ndarray | None = None  # of the restarts so far
    best_inertia: float = float("inf")
    history: list[dict[str, float]] = field(default_factory=list)


def prepare(
    crew: Crew, *, pca: int | None, whiten: bool, normalise: bool, spherical: bool, k: int
) -> tuple[Setup, dict[str, Any]]:
    """From the features of all workers: the setup of points, and facts for the record.

    Raises:
        SourceError: no finite features, fewer points than clusters, features that are all the same, or fewer components
            than asked for.
    """
    raw = Setup()
    found = crew.ask("moments", raw)
    count, not_finite = sum(part["count"] for part in found), sum(part["not_finite"] for part in found)
    if not count:
        raise SourceError(f"none of the {not_finite} feature vectors is finite; extract them again with precision=float32")
    if count < k:
        raise SourceError(f"k={k} clusters are asked for and there are {count} points; lower the number of clusters")
    total = np.sum([part["sum"] for part in found if part["count"]], axis=0)
    setup = raw
    if pca is not None:
        mean = _coarse(total / count)
        setup = _with_pca(crew, Setup(mean=mean), count, pca, whiten)
    if normalise or spherical:
        setup = replace(setup, normalise=True)
    if not spherical:
        if setup is not raw:
            found = crew.ask("moments", setup)
            total = np.sum([part["sum"] for part in found if part["count"]], axis=0)
        setup = replace(setup, centre=_coarse(total / count))
    found = [part for part in crew.ask("moments", setup) if part["count"]]
    low, high = np.min([part["low"] for part in found], axis=0), np.max([part["high"] for part in found], axis=0)
    largest = float(max(np.abs(low).max(), np.abs(high).max()))
    centred = 0.0 if setup.centre is None else float(np.abs(setup.centre).max())
    if float((high - low).max()) <= max(1e-30, 1e-6 * max(largest, centred)):
        raise SourceError(
            f"the features of all {count} images are the same; nothing can be told apart. Take another layer, or a net that "
            "has learned"
        )
    setup = replace(setup, unit=grid_unit(largest, count))
    return setup, {"points": count, "not_finite": not_finite}


def _coarse(mean: np.ndarray) -> np.ndarray:
    """A mean with few digits: what to take off need not be exact, and so the order of its sums does not show in it."""
    largest = float(np.abs(mean).max())
    if not largest:
        return mean.astype(np.float32)
    unit = 2.0 ** (np.frexp(largest)[1] - 22)  # of float32's 24
    return (np.rint(mean / unit) * unit).astype(np.float32)


def _with_pca(crew: Crew, setup: Setup, count: int, components: int, whiten: bool) -> Setup:
    covariance = np.sum(crew.ask("scatter", setup), axis=0) / count
    if components > len(covariance):
        raise SourceError(f"pca={components} components are asked for of features of {len(covariance)}; lower it")
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[::-1][:components], vectors[:, ::-1][:, :components]
    if values[-1] <= 1e-9 * max(values[0], 1e-30):
        good = int((values > 1e-9 * max(values[0], 1e-30)).sum())
        raise SourceError(f"pca={components} components are asked for, and the features vary in {good}; lower it")
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(components)])
    projection = vectors / np.sqrt(values) if whiten else vectors
    return replace(setup, projection=projection.astype(np.float32))


def initial(crew: Crew, setup: Setup, config: KMeansConfig, restart: int, count: int) -> np.ndarray:
    """The first centroids, float32 [k, d]. All draws are addressed by a point's place among all.

    k-means||: Bahmani et al., VLDB 2012 (arXiv 1203.6402), with rounds and oversampling as in Spark's MLlib; the candidates,
    weighted by how many points are nearest to each, become k by k-means++.
    """
    address = (config.seed, "kmeans", restart)
    if config.init == "k-means||":
        candidates = _drawn(crew, setup, 1, (*address, "first"))
        for number in range(config.rounds):
            cost = sum(crew.ask("cost", setup, candidates))
            if not cost:
                break
            factor = config.oversampling * config.k / cost
            parts = crew.ask("draw", setup, candidates, factor, (*address, "round", number))
            candidates = np.concatenate([candidates, *(points for _, points in parts)])
        weights = np.sum(crew.ask("weights", setup, candidates), axis=0)
        if len(candidates) >= config.k:
            return seed_centroids(candidates, weights.astype(np.float64), config.k, (*address, "seeds"))
        # Too few distinct points were found: the rest at random.
        rest = _drawn(crew, setup, config.k - len(candidates), (*address, "rest"))
        return np.concatenate([candidates, rest])
    if config.init == "k-means++":
        wanted = min(config.init_sample or count, count)
        if config.init_sample is None and wanted * _drawn(crew, setup, 1, address).shape[1] > MOST_VALUES:
            raise SourceError(
                f"k-means++ over all {count:,} points would bring them into one process; set init_sample, or init=k-means||"
            )
        points = _drawn(crew, setup, wanted, (*address, "sample"))
        return seed_centroids(points, None, config.k, (*address, "seeds"))
    return _drawn(crew, setup, config.k, (*address, "random"))


MOST_VALUES = 1 << 28
"""Coordinates that the driver may hold for seeds, unless a sample was asked for: a gigabyte."""


def _drawn(crew: Crew, setup: Setup, count: int, address: tuple[int | str, ...]) -> np.ndarray:
    """So many points, those with the smallest draws, in the order of their places."""
    parts = crew.ask("smallest", setup, count, address)
    draw, place, points = (np.concatenate([part[i] for part in parts]) for i in range(3))
    kept = np.lexsort((place, draw))[:count]
    return points[kept[np.argsort(place[kept])]]


def lloyd(
    crew: Crew,
    setup: Setup,
    config: KMeansConfig,
    state: State,
    count: int,
    *,
    save: Callable[[State], None],
    tell: Callable[[str], None],
) -> State:
    """Iterate from a state to the end of the last restart. `save` is called after every iteration.

    Raises:
        SourceError: as `initial`.
    """
    squares = sum(crew.ask("squares", setup))
    while state.restart < config.restarts:
        if state.centroids is None:
            state.centroids = initial(crew, setup, config, state.restart, count)
        while True:
            begin = time.perf_counter()
            done = _iterate(crew, setup, config, state, count, squares)
            entry = state.history[-1]
            entry["seconds"] = round(time.perf_counter() - begin, 3)
            which = f"restart {state.restart + 1}/{config.restarts}  " if config.restarts > 1 else ""
            repaired = f"  {entry['repaired']:.0f} empty clusters moved" if entry["repaired"] else ""
            at = f"end, after iteration {state.iteration}" if done else f"iteration {state.iteration}/{config.iterations}"
            tell(f"{which}{at}  inertia {entry['inertia']:.6g}  moved {entry['moved']:.2%}{repaired}  {entry['seconds']:.1f} s")
            if done:
                break
            save(state)
        if state.history[-1]["inertia"] < state.best_inertia:
            state.best, state.best_inertia = state.centroids, state.history[-1]["inertia"]
        state.restart, state.iteration, state.centroids, state.before = state.restart + 1, 0, None, None
        save(state)
    return state


def _iterate(crew: Crew, setup: Setup, config: KMeansConfig, state: State, count: int, squares: float) -> bool:
    """One assignment, and unless it was the last one, the update that follows from it. True: this restart is through.

    The inertia of an entry is that of the centroids before its update; the last assignment of a restart updates nothing, so
    that the centroids kept are those that the last inertia and counts belong to.
    """
    assert state.centroids is not None
    parts = crew.ask("step", setup, state.iteration, state.centroids, state.before)
    sums, counts = np.sum([part[0] for part in parts], axis=0), np.sum([part[1] for part in parts], axis=0)
    inertia, moved = inertia_of(state.centroids, sums, counts, squares), sum(part[2] for part in parts)
    mine = [entry for entry in state.history if entry["restart"] == state.restart]
    # An iteration that had to move empty clusters is no sign that the others stand still.
    fell = not mine or bool(mine[-1]["repaired"]) or inertia < mine[-1]["inertia"] * (1 - config.tolerance)
    done = state.iteration == config.iterations or moved == 0 or (config.tolerance > 0 and not fell)
    entry = {"restart": state.restart, "iteration": state.iteration, "inertia": inertia, "moved": moved / count, "repaired": 0,
             "empty": int((counts == 0).sum())}  # fmt: skip
    state.history.append(entry)
    if done:
        return True
    updated = next_centroids(state.centroids, sums, counts, config.spherical)
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        entry["repaired"] = _repair(crew, setup, updated, empty)
    state.before, state.centroids, state.iteration = state.centroids, updated, state.iteration + 1
    return False


def _repair(crew: Crew, setup: Setup, centroids: np.ndarray, empty: np.ndarray) -> int:
    """Put empty clusters, in order, on the points farthest from their own centroids; returns how many found one.

    An empty cluster serves no point, so moving it cannot raise the inertia.
    """
    parts = crew.ask("farthest", setup, centroids, len(empty))
    distance, place, points = (np.concatenate([part[i] for part in parts]) for i in range(3))
    order = np.lexsort((place, -distance))
    _, first = np.unique(points[order], axis=0, return_index=True)  # a point that stands there twice serves one cluster
    chosen = order[np.sort(first)][: len(empty)]
    centroids[empty[: len(chosen)]] = points[chosen]
    return len(chosen)
