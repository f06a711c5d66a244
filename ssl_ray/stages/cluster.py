"""k-means on stored features: centroids that label any image which the same net can look at."""

from __future__ import annotations

import io
import json
from typing import Annotated, Any
from zipfile import BadZipFile

import numpy as np
from pydantic import Field

from ssl_ray.artifacts import Checkpoint, Features
from ssl_ray.cluster import check_resources, cores_for, ensure_ray
from ssl_ray.clustering import KMeansConfig, imbalance
from ssl_ray.data.kmeans import State, lloyd, prepare
from ssl_ray.data.points import Crew, KMeansWorker, LocalCrew, PointFile, RayCrew, Setup, dealt, point_files
from ssl_ray.errors import StorageError
from ssl_ray.filesystems import absolute
from ssl_ray.lock import check_held
from ssl_ray.scale import Scale
from ssl_ray.stage import stage
from ssl_ray.storage import Folder

STATE, SETUP = "iterations.npz", "points.npz"


class ClusterConfig(KMeansConfig):
    """How features become points, and how those are clustered. `extract` names the layer."""

    pca: Annotated[int, Field(ge=1)] | None = None  # components; None: all features as they are
    whiten: bool = False  # components to variance one
    normalise: bool = False  # points to length one, after PCA


@stage(Checkpoint, resumable=True)
def cluster(config: ClusterConfig, out: Folder, scale: Scale, *, features: Features, model: Checkpoint) -> dict[str, Any]:
    """Cluster all points on workers that hold their files; killed, it goes on after the last whole iteration.

    The artifact is a labeler: the net, the layer, its preprocessing and the centroids. `label` takes it as any teacher, on the
    same or on another corpus.

    Args:
        features: of the images to cluster, from `model`.

    Raises:
        SourceError: more clusters than points, points that are all the same, no finite features.
        ResourceError: the cluster cannot hold the workers.
    """
    folder = features.folder / "features"
    files = point_files(folder, features.files)
    crew = make_crew(folder, files, scale)
    try:
        saved = saved_work(out)
        if saved is not None:  # components of other workers' sums might differ in their last digits
            setup, facts, state = saved
        else:
            state = State()
            setup, facts = prepare(
                crew, pca=config.pca, whiten=config.whiten, normalise=config.normalise, spherical=config.spherical, k=config.k
            )
            out.write_bytes(SETUP, dumped_setup(setup, facts))
        of = f", {config.pca} components" if config.pca is not None else ""
        print(f"{facts['points']:,} points of {features.results['width']:,} features{of}, {config.k:,} clusters", flush=True)

        def save(state: State) -> None:
            check_held()
            out.write_bytes(STATE, dumped(state))

        state = lloyd(crew, setup, config, state, facts["points"], save=save, tell=lambda line: print(line, flush=True))
        assert state.best is not None
        sizes = np.sum(crew.ask("sizes", setup, state.best), axis=0)
    finally:
        if isinstance(crew, RayCrew):
            crew.close()
    width, dim = int(features.results["width"]), state.best.shape[1]
    variance = max(state.best_inertia / (facts["points"] * dim), 1e-12)
    tensors = {
        "mean": np.zeros(width, np.float32) if setup.mean is None else setup.mean,
        "centre": np.zeros(dim, np.float32) if setup.centre is None else setup.centre,
        "centroids": state.best,
        "variance": np.float64(variance),
    } | ({} if setup.projection is None else {"projection": setup.projection})
    shapes = {"features": width, "dim": dim, "k": config.k, "pca": config.pca is not None, "normalise": setup.normalise}
    write_labeler(out, model, tensors, shapes, features.record.config.get("layer"))
    empty, iterations = int((sizes == 0).sum()), len(state.history) - config.restarts
    best = min(state.history, key=lambda entry: entry["inertia"])
    took = sum(entry["seconds"] for entry in state.history)
    return {
        "summary": (
            f"{config.k:,} clusters of {facts['points']:,} points in {iterations} iterations, inertia "
            f"{state.best_inertia:.5g}, "
            f"sizes {int(sizes.min()):,} to {int(sizes.max()):,} (imbalance {imbalance(sizes):.2f})"
            + (f", {empty} empty" if empty else "")
            + (f", {facts['not_finite']:,} images left out for features that are not finite" if facts["not_finite"] else "")
        ),
        **facts,
        "inertia": state.best_inertia,
        "variance": variance,
        "restart": best["restart"],
        "iterations": iterations,
        "iterations_s": round(took, 3),
        "sizes": sizes.tolist(),
        "imbalance": imbalance(sizes),
        "empty": empty,
        "history": state.history,
        "parameters": int(state.best.size),
        "sampled_for_seeds": config.init_sample,
    }


def make_crew(folder: Folder, files: list[PointFile], scale: Scale) -> Crew:
    """Workers as the scale says: actors, or this process."""
    path = absolute(folder.path)
    if scale.cluster_actors == 0:
        return LocalCrew([KMeansWorker(path, files, cores_for(1, scale.cluster_threads))])
    ensure_ray(scale)
    parts = dealt(files, scale.cluster_actors)
    if not scale.autoscaling:
        check_resources("scale.cluster_actors", len(parts), scale.cluster_cpus, 0.0)
    threads = cores_for(len(parts), scale.cluster_threads)
    return RayCrew(path, parts, cpus=scale.cluster_cpus, threads=threads, restarts=scale.max_failures + 1)


def write_labeler(
    out: Folder, model: Checkpoint, tensors: dict[str, np.ndarray], shapes: dict[str, Any], layer: dict[str, Any] | None
) -> None:
    """The model's own files with the centroids beside its weights."""
    from safetensors.numpy import save

    k = int(shapes["k"])
    out.write_bytes("centroids.safetensors", save({key: np.ascontiguousarray(value) for key, value in tensors.items()}))
    if model.folder.exists("model.safetensors"):
        out.write_bytes("model.safetensors", model.folder.read_bytes("model.safetensors"))
    description = model.model | {"layer": layer, "clusters": shapes, "classes": [f"cluster {i}" for i in range(k)]}
    out.write_json("model.json", description)


def saved_work(out: Folder) -> tuple[Setup, dict[str, Any], State] | None:
    """Read what an earlier call saved; None where there is nothing, or a file is damaged: then all is computed again."""
    if not out.exists(SETUP):
        return None
    try:
        setup, facts = loaded_setup(out.read_own(SETUP))
        return setup, facts, loaded(out.read_own(STATE)) if out.exists(STATE) else State()
    except StorageError:
        raise  # a server that is away has lost nothing
    except (LookupError, TypeError, ValueError, OSError, EOFError, BadZipFile) as error:
        print(f"the saved iterations in {out.path} are damaged ({error}); the clustering starts again", flush=True)
        out.remove(STATE)
        return None


def dumped(state: State) -> bytes:
    buffer = io.BytesIO()
    arrays = {name: value for name in ("centroids", "before", "best") if (value := getattr(state, name)) is not None}
    numbers = {"restart": state.restart, "iteration": state.iteration, "history": state.history}
    numbers |= {"best_inertia": state.best_inertia} if state.best is not None else {}
    np.savez(buffer, numbers=np.frombuffer(json.dumps(numbers).encode(), np.uint8), **arrays)
    return buffer.getvalue()


def loaded(data: bytes) -> State:
    found = np.load(io.BytesIO(data), allow_pickle=False)
    numbers = json.loads(found["numbers"].tobytes())
    arrays = {name: found[name] for name in ("centroids", "before", "best") if name in found.files}
    return State(**numbers, **arrays)


def dumped_setup(setup: Setup, facts: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    arrays = {name: value for name in ("mean", "projection", "centre") if (value := getattr(setup, name)) is not None}
    numbers = {"normalise": setup.normalise, "unit": setup.unit, "facts": facts}
    np.savez(buffer, numbers=np.frombuffer(json.dumps(numbers).encode(), np.uint8), **arrays)
    return buffer.getvalue()


def loaded_setup(data: bytes) -> tuple[Setup, dict[str, Any]]:
    found = np.load(io.BytesIO(data), allow_pickle=False)
    numbers = json.loads(found["numbers"].tobytes())
    facts = numbers.pop("facts")
    arrays = {name: found[name] for name in ("mean", "projection", "centre") if name in found.files}
    return Setup(**numbers, **arrays), facts
