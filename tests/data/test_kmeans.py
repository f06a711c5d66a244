"""k-means over shards: the same answer on any cut, any number of workers, after any restart, and without a killed actor."""

from __future__ import annotations

import copy
import itertools
import threading
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest

from ssl_ray.artifacts import Features, Record
from ssl_ray.clustering import KMeansConfig, nearest
from ssl_ray.config import override
from ssl_ray.data import kmeans
from ssl_ray.data.kmeans import State, lloyd, prepare
from ssl_ray.data.points import KMeansWorker, LocalCrew, PointFile, RayCrew, Setup, dealt, point_files
from ssl_ray.errors import SourceError
from ssl_ray.label_files import LabelFile
from ssl_ray.scale import Scale, inline
from ssl_ray.schema import feature_columns
from ssl_ray.stage import Run
from ssl_ray.stages.cluster import ClusterConfig, cluster, dumped, dumped_setup, loaded, loaded_setup
from ssl_ray.storage import Folder
from tests.teachers import make_model


def mixture(n: int = 4000, d: int = 24, centres: int = 30, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    found = draw.standard_normal((n, d)) + 2 * draw.standard_normal((centres, d))[draw.integers(0, centres, n)]
    return (found + 50).astype(np.float32)  # far from the origin, as features after a ReLU are


def store(folder: Path, vectors: np.ndarray, shards: int) -> tuple[Folder, list[PointFile]]:
    out = Folder(str(folder))
    files = []
    for shard, part in enumerate(np.array_split(vectors, shards)):
        ids = pa.array([f"{shard}/{row}" for row in range(len(part))])
        file = LabelFile(shard, 0, len(part))
        out.write_table(file.name, feature_columns(ids, shard, np.arange(len(part), dtype=np.int32), part))
        files.append(file)
    return out, point_files(out, files)


def crew_of(folder: Folder, files: list[PointFile], workers: int) -> LocalCrew:
    return LocalCrew([KMeansWorker(folder.path, part, 1) for part in dealt(files, workers)])


def run(crew: Any, config: KMeansConfig, state: State | None = None, **options: Any) -> tuple[State, Any]:
    chosen = {"pca": None, "whiten": False, "normalise": False} | options
    setup, facts = prepare(crew, spherical=config.spherical, k=config.k, **chosen)
    state = lloyd(crew, setup, config, state or State(), facts["points"], save=lambda s: None, tell=lambda line: None)
    return state, setup


def labels_of(crew: Any, setup: Any, centroids: np.ndarray) -> np.ndarray:
    return np.concatenate([nearest(worker._points, centroids)[1] for worker in crew._workers])


CONFIG = KMeansConfig(k=30, iterations=20, tolerance=0.0)


class TestAnyCut:
    @pytest.mark.parametrize("init", ["k-means||", "k-means++", "random"])
    def test_shards_and_workers_change_no_bit(self, tmp_path: Path, init: str) -> None:
        x, config = mixture(), CONFIG.model_copy(update={"init": init})
        expected: tuple[np.ndarray, np.ndarray, list[float]] | None = None
        for shards, workers in ((1, 1), (2, 1), (2, 2), (4, 3), (7, 7), (64, 5)):
            crew = crew_of(*store(tmp_path / f"{shards}-{workers}", x, shards), workers)
            state, setup = run(crew, config)
            assert state.best is not None
            found = (state.best, labels_of(crew, setup, state.best), [entry["moved"] for entry in state.history])
            expected = expected or found
            assert np.array_equal(found[0], expected[0])
            assert np.array_equal(found[1], expected[1])
            assert found[2] == expected[2]

    def test_other_seeds_give_others(self, tmp_path: Path) -> None:
        crew = crew_of(*store(tmp_path, mixture(), 3), 1)
        first, second = (run(crew, CONFIG.model_copy(update={"seed": seed}))[0].best for seed in (0, 1))
        assert first is not None
        assert second is not None
        assert not np.array_equal(first, second)

    def test_an_order_of_points_permutes_labels_only(self, tmp_path: Path) -> None:
        """From given centroids: seeds go by place."""
        x = mixture()
        order = np.random.default_rng(3).permutation(len(x))
        found = []
        for name, vectors in (("a", x), ("b", x[order])):
            crew = crew_of(*store(tmp_path / name, vectors, 4), 2)
            setup, facts = prepare(crew, pca=None, whiten=False, normalise=False, spherical=False, k=30)
            start = State(centroids=x[:30] - setup.centre)
            state = lloyd(crew, setup, CONFIG, start, facts["points"], save=lambda s: None, tell=lambda line: None)
            assert state.best is not None
            found.append((state.best, labels_of(crew, setup, state.best)))
        assert np.array_equal(found[0][0], found[1][0])
        assert np.array_equal(found[0][1][order], found[1][1])


class TestLloyd:
    def test_inertia_never_rises(self, tmp_path: Path) -> None:
        state, _ = run(crew_of(*store(tmp_path, mixture(), 4), 2), CONFIG.model_copy(update={"k": 100, "init": "random"}))
        inertia = [entry["inertia"] for entry in state.history]
        assert len(inertia) > 5
        assert all(after <= before for before, after in itertools.pairwise(inertia))

    def test_it_is_as_good_as_faiss_from_the_same_seeds(self, tmp_path: Path) -> None:
        import faiss

        x = mixture()
        crew = crew_of(*store(tmp_path, x, 4), 2)
        setup, facts = prepare(crew, pca=None, whiten=False, normalise=False, spherical=False, k=30)
        state = lloyd(crew, setup, CONFIG, State(centroids=x[:30] - setup.centre), facts["points"],
                      save=lambda s: None, tell=lambda line: None)  # fmt: skip
        theirs = faiss.Kmeans(24, 30, niter=20, max_points_per_centroid=10**6)
        theirs.train(x - setup.centre, init_centroids=x[:30] - setup.centre)
        assert state.best is not None
        ours, reference = (float(nearest(x - setup.centre, c)[0].sum(dtype=np.float64)) for c in (state.best, theirs.centroids))
        assert ours == pytest.approx(reference, rel=1e-3)
        assert state.best_inertia == pytest.approx(ours, rel=1e-5)

    def test_the_result_is_a_fixed_point(self, tmp_path: Path) -> None:
        crew = crew_of(*store(tmp_path, mixture(), 4), 2)
        state, _ = run(crew, CONFIG.model_copy(update={"iterations": 300}))
        again, _ = run(crew, CONFIG, State(centroids=state.best))
        assert state.history[-1]["moved"] == 0
        assert again.best is not None
        assert np.allclose(again.best, state.best, atol=1e-5)  # type: ignore[arg-type]
        assert len(again.history) == 2

    def test_extremes(self, tmp_path: Path) -> None:
        x = mixture(200, centres=200)
        crew = crew_of(*store(tmp_path, x, 3), 2)
        one, setup = run(crew, KMeansConfig(k=1))
        assert one.best is not None
        assert np.allclose(one.best[0] + setup.centre, x.mean(axis=0), atol=1e-4)
        every, _ = run(crew, KMeansConfig(k=200))
        assert every.best_inertia == pytest.approx(0.0, abs=1e-2)
        assert every.history[-1]["empty"] == 0

    def test_doubled_data_has_the_same_centroids(self, tmp_path: Path) -> None:
        x = mixture(1000)
        found = []
        for name, vectors in (("a", x), ("b", np.concatenate([x, x]))):
            crew = crew_of(*store(tmp_path / name, vectors, 2), 1)
            state, setup = run(crew, CONFIG, State(centroids=x[:30] - 50))
            assert state.best is not None
            found.append(state.best + setup.centre)
        assert np.allclose(found[0], found[1], atol=1e-4)

    def test_empty_clusters_move_to_the_farthest_points(self, tmp_path: Path) -> None:
        x = mixture(500)
        crew = crew_of(*store(tmp_path, x, 3), 3)
        setup, _facts = prepare(crew, pca=None, whiten=False, normalise=False, spherical=False, k=10)
        lost = np.concatenate([x[:5] - setup.centre, np.full((5, x.shape[1]), 1e4, np.float32)])
        config = KMeansConfig(k=10, iterations=10, tolerance=0.0)
        state = lloyd(crew, setup, config, State(centroids=lost), 500, save=lambda s: None, tell=lambda line: None)
        assert state.history[0]["empty"] == 5
        assert state.history[0]["repaired"] == 5
        assert state.history[1]["inertia"] < state.history[0]["inertia"]
        assert state.history[-1]["empty"] == 0

    def test_fewer_distinct_points_than_clusters_are_counted(self, tmp_path: Path) -> None:
        x = np.repeat(mixture(6), 20, axis=0)
        state, _ = run(crew_of(*store(tmp_path, x, 2), 2), KMeansConfig(k=10, iterations=8))
        assert state.history[-1]["empty"] == 4
        assert state.best_inertia < 1e-3

    def test_restarts_keep_the_best(self, tmp_path: Path) -> None:
        crew = crew_of(*store(tmp_path, mixture(), 2), 1)
        config = CONFIG.model_copy(update={"init": "random", "restarts": 4, "iterations": 6})
        state, _ = run(crew, config)
        lasts = [[e for e in state.history if e["restart"] == number][-1]["inertia"] for number in range(4)]
        assert len(set(lasts)) == 4
        assert state.best_inertia == min(lasts)

    def test_on_the_sphere(self, tmp_path: Path) -> None:
        x = mixture() - 50
        crew = crew_of(*store(tmp_path, x, 2), 2)
        state, setup = run(crew, CONFIG.model_copy(update={"spherical": True}))
        assert state.best is not None
        assert setup.centre is None
        assert np.allclose(np.linalg.norm(state.best, axis=1), 1.0, atol=1e-6)
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        assert np.array_equal(labels_of(crew, setup, state.best), (unit @ state.best.T).argmax(axis=1))

    def test_whitened_components_have_variance_one(self, tmp_path: Path) -> None:
        crew = crew_of(*store(tmp_path, mixture(), 3), 2)
        run(crew, CONFIG, pca=8, whiten=True)
        seen = np.concatenate([worker._points for worker in crew._workers])
        assert np.allclose(np.cov(seen.T), np.eye(8), atol=0.01)


class TestInterruption:
    def test_at_every_iteration_it_goes_on_as_if_nothing_had_been(self, tmp_path: Path) -> None:
        folder, files = store(tmp_path, mixture(1500), 5)
        config = KMeansConfig(k=20, iterations=6, tolerance=0.0, restarts=2, init="random")
        saved: list[bytes] = []
        crew = crew_of(folder, files, 2)
        setup, _facts = prepare(crew, pca=None, whiten=False, normalise=False, spherical=False, k=20)
        whole = lloyd(crew, setup, config, State(), 1500, save=lambda s: saved.append(dumped(s)), tell=lambda line: None)
        assert len(saved) >= 6
        for data in saved[:-1]:
            fresh = crew_of(folder, files, 3)
            rest = lloyd(fresh, setup, config, loaded(data), 1500, save=lambda s: None, tell=lambda line: None)
            assert rest.best is not None
            assert np.array_equal(rest.best, whole.best)  # type: ignore[arg-type]
            same = [{k: v for k, v in entry.items() if k != "seconds"} for entry in rest.history]
            assert same == [{k: v for k, v in entry.items() if k != "seconds"} for entry in whole.history]

    @pytest.mark.parametrize("pca", [None, pytest.param(8, marks=pytest.mark.slow)])
    @pytest.mark.slow
    def test_actors_killed_in_the_middle_of_calls_change_nothing(
        self, tmp_path: Path, ray_session: None, pca: int | None
    ) -> None:
        import ray

        class Killing(RayCrew):
            killed: ClassVar[list[str]] = []

            def ask(self, method: str, *arguments: Any) -> list[Any]:
                if method in ("cost", "draw", "step") and self.killed.count(method) < 2:
                    self.killed.append(method)
                    worker = self.actors[len(self.killed) % 2]
                    timer = threading.Timer(0.005, ray.kill, (worker,), {"no_restart": False})
                    timer.start()
                return super().ask(method, *arguments)

        Killing.killed = []
        folder, files = store(tmp_path, mixture(2000), 6)
        config = KMeansConfig(k=20, iterations=6, tolerance=0.0)
        crew = Killing(folder.path, dealt(files, 2), cpus=0.25, threads=1, restarts=10)
        setup, facts = prepare(crew, pca=pca, whiten=False, normalise=False, spherical=False, k=20)
        try:
            state = lloyd(crew, setup, config, State(), facts["points"], save=lambda s: None, tell=lambda line: None)
        finally:
            crew.close()
        calm = lloyd(crew_of(folder, files, 1), setup, config, State(), 2000, save=lambda s: None, tell=lambda line: None)
        assert sorted(Killing.killed) == ["cost", "cost", "draw", "draw", "step", "step"]
        assert state.best is not None
        assert np.array_equal(state.best, calm.best)  # type: ignore[arg-type]
        assert [entry["moved"] for entry in state.history] == [entry["moved"] for entry in calm.history]

    def test_the_stage_on_ray_gives_what_one_process_gives(self, tmp_path: Path, ray_session: None, scale: Scale) -> None:
        store(tmp_path / "features", mixture(1200), 4)
        Record("Features", "extract", "f", "f", {"layer": None}, {}, {"width": 24}).save(Folder(str(tmp_path)))
        model = make_model(tmp_path / "model", ["a", "b"])
        found = []
        for name, chosen in (("here", inline()), ("ray", override(scale, {"cluster_actors": 2, "cluster_cpus": 0.25}))):
            run = Run(str(tmp_path / name), chosen, echo=lambda line: None)
            config = ClusterConfig(k=12, iterations=5, tolerance=0.0)
            found.append(run("c", cluster, config, features=Features(str(tmp_path)), model=model))
        assert found[0].folder.read_bytes("centroids.safetensors") == found[1].folder.read_bytes("centroids.safetensors")
        assert found[0].results["sizes"] == found[1].results["sizes"]


class TestBadInput:
    def bad(self, folder: Path, vectors: np.ndarray, k: int = 5, **options: Any) -> None:
        run(crew_of(*store(folder, vectors, 2), 2), KMeansConfig(k=k), **options)

    def test_messages(self, tmp_path: Path) -> None:
        x = mixture(50)
        with pytest.raises(SourceError, match=r"k=51 clusters are asked for and there are 50 points; lower"):
            self.bad(tmp_path / "a", x, k=51)
        with pytest.raises(SourceError, match=r"all 50 images are the same; nothing can be told apart. Take another layer"):
            self.bad(tmp_path / "b", np.ones_like(x) * 7.3)
        with pytest.raises(SourceError, match=r"all 50 images are the same"):
            run(crew_of(*store(tmp_path / "s", np.ones_like(x) * 7.3, 2), 2), KMeansConfig(k=5, spherical=True))
        with pytest.raises(SourceError, match=r"none of the 50 feature vectors is finite"):
            self.bad(tmp_path / "c", x * np.nan)
        with pytest.raises(SourceError, match=r"pca=25 components are asked for of features of 24"):
            self.bad(tmp_path / "d", x, pca=25)
        with pytest.raises(SourceError, match=r"vary in 2; lower it"):
            self.bad(tmp_path / "e", x * np.array([1, 1] + [0] * 22, np.float32), pca=3)

    def test_what_is_not_finite_is_left_out_and_counted(self, tmp_path: Path) -> None:
        x = mixture(300)
        x[[3, 150, 299], [0, 5, 7]] = [np.nan, np.inf, -np.inf]
        crew = crew_of(*store(tmp_path / "a", x, 3), 2)
        setup, facts = prepare(crew, pca=None, whiten=False, normalise=False, spherical=False, k=5)
        assert facts == {"points": 297, "not_finite": 3}
        places = np.concatenate([part[1] for part in crew.ask("smallest", setup, 300, (0,))])
        assert set(range(300)) - set(places.tolist()) == {3, 150, 299}


def test_files_are_dealt_in_runs_and_nobody_goes_empty() -> None:
    for rows in ([10] * 7, [1000, 1, 1, 1, 1], [1, 1, 1, 1000], [5], [3, 3]):
        files = [PointFile(str(i), 0, n) for i, n in enumerate(rows)]
        for workers in (1, 2, 3, 5, 9):
            parts = dealt(files, workers)
            assert [file for part in parts for file in part] == files
            assert len(parts) == min(workers, len(files))
            assert all(parts)
    assert [len(part) for part in dealt([PointFile("", 0, 10)] * 8, 4)] == [2, 2, 2, 2]


def test_a_state_survives_its_file() -> None:
    state = State(1, 3, np.ones((2, 3), np.float32), None, np.zeros((2, 3), np.float32), 4.5, [{"inertia": 4.5}])
    back = loaded(dumped(state))
    assert (back.restart, back.iteration, back.best_inertia, back.history, back.before) == (1, 3, 4.5, [{"inertia": 4.5}], None)
    assert np.array_equal(back.centroids, state.centroids)  # type: ignore[arg-type]
    assert loaded(dumped(State())).best_inertia == float("inf")
    assert copy.deepcopy(back).best is not back.best


def test_a_setup_survives_its_file() -> None:
    setup = Setup(mean=np.ones(3, np.float32), projection=np.ones((3, 2), np.float32), normalise=True, unit=2.0**-20)
    back, facts = loaded_setup(dumped_setup(setup, {"points": 7}))
    assert facts == {"points": 7}
    assert (back.normalise, back.unit, back.centre) == (True, 2.0**-20, None)
    assert np.array_equal(back.projection, setup.projection)  # type: ignore[arg-type]


def test_seeds_of_too_many_points_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "MOST_VALUES", 1000)
    crew = crew_of(*store(tmp_path, mixture(100), 2), 1)
    with pytest.raises(
        SourceError, match=r"k-means\+\+ over all 100 points would bring them into one process; set init_sample"
    ):
        run(crew, KMeansConfig(k=5, init="k-means++"))
    run(crew, KMeansConfig(k=5, init="k-means++", init_sample=20))


def test_candidates_of_other_seeds_are_measured_anew(tmp_path: Path) -> None:
    """A restart may come with as many candidates as the one before."""
    x = mixture(200)
    [worker] = crew_of(*store(tmp_path, x, 2), 1)._workers
    setup = Setup(centre=x.mean(axis=0))
    points = x - x.mean(axis=0)
    for row in (3, 77):
        cost = worker.cost(setup, points[row : row + 1])
        assert cost == pytest.approx(float(((points - points[row]) ** 2).sum()), rel=1e-4)
    assert worker.cost(setup, points[[77, 5]]) < cost
