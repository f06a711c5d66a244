"""One training: on Ray Train's workers, or in this process."""

from __future__ import annotations

import io
import os
import pickle
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from ssl_ray.artifacts import Checkpoint, Corpus, PseudoLabels, Selection
from ssl_ray.cluster import check_resources, ensure_ray, notices_where_they_help, own_error, own_ray, plain_errors
from ssl_ray.errors import DamagedError, HealthError, ResourceError, SslRayError, StorageError
from ssl_ray.filesystems import absolute
from ssl_ray.progress import BEGAN
from ssl_ray.scale import Scale
from ssl_ray.storage import Folder

if TYPE_CHECKING:
    from ssl_ray.settings.training import LoopConfig

Result = TypeVar("Result")

STATE = "state.pt"

CHECKPOINTS = "training/checkpoint_manager_snapshot.json"
"""Ray Train's own list of the checkpoints that it saved."""


def fit(
    method: str,
    config: LoopConfig,
    out: Folder,
    scale: Scale,
    *,
    images: Corpus,
    labels: PseudoLabels | None = None,
    selection: Selection | None = None,
    start: Checkpoint | None = None,
    teacher: Checkpoint | None = None,
    other: Corpus | None = None,
) -> dict[str, Any]:
    """Train, and leave `model.safetensors` and `model.json` in `out`. Called again after a kill, it goes on.

    Args:
        method: a key of `train.run.METHODS`.
        config: its settings.
        start: weights to begin with.
        teacher: labels while the student learns, where the labels are not stored.
        other: images beside, whose classes are learned in the same steps.

    Returns:
        The last history entry and the timing of the run.

    Raises:
        ResourceError: more workers than the cluster has, or a number that would change the results.
    """
    most = max(1, scale.train_workers)
    least = scale.train_workers_min or most
    for workers in range(least, most + 1):
        config.check_workers(workers)
    storage = absolute(out.path)
    payload = {
        "method": method,
        "config": config.model_dump(mode="json"),
        "out": storage,
        "images": absolute(images.path),
        "labels": absolute(labels.path) if labels else None,
        "selection": absolute(selection.path) if selection else None,
        "start": absolute(start.path) if start else None,
        "teacher": absolute(teacher.path) if teacher else None,
        "other": absolute(other.path) if other else None,
        "scale": scale.model_dump(mode="json"),
        "job_began": BEGAN,
        "watched": False,
    }
    begin = time.time()
    summary = train_here(payload) if scale.train_workers == 0 else _on_ray(payload, storage, scale, least)
    summary["start_s"] = round(summary.pop("began") - begin, 3)
    summary["stop_s"] = round(time.time() - summary.pop("ended"), 3)
    return summary


def _on_ray(payload: dict[str, Any], storage: str, scale: Scale, least: int) -> dict[str, Any]:
    ensure_ray(scale)
    payload["watched"] = not own_ray()
    if not scale.autoscaling:
        setting = "scale.train_workers_min" if scale.train_workers_min else "scale.train_workers"
        check_resources(setting, least, scale.train_cpus, scale.train_gpus)
    from ray.exceptions import RayActorError
    from ray.train import CheckpointConfig, ControllerError, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from ssl_ray.train.failures import StopOnOwnErrors

    drop_unreadable_list(Folder(payload["out"]))
    resources = {"CPU": scale.train_cpus} | ({"GPU": scale.train_gpus} if scale.train_gpus else {})
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=payload,
        scaling_config=ScalingConfig(
            num_workers=(least, scale.train_workers) if scale.train_workers_min else scale.train_workers,
            resources_per_worker=resources,
            use_gpu=scale.train_gpus > 0,
            elastic_resize_monitor_interval_s=scale.resize_check_s,
        ),
        run_config=RunConfig(
            name="training",
            storage_path=storage,
            failure_config=FailureConfig(max_failures=scale.max_failures, controller_failure_limit=2),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            callbacks=[StopOnOwnErrors()],
            logging_config=LoggingConfig("CRITICAL" if own_ray() else "INFO"),  # ours says what went wrong
        ),
    )
    with plain_errors(), notices_where_they_help(scale):
        try:
            result = in_thread(trainer.fit)
        except RayActorError as error:  # of the controller, which reads the list when it is made
            if "CheckpointManagerInitializationError" not in str(error):
                raise
            raise Folder(payload["out"]).damaged(CHECKPOINTS, "it does not fit the checkpoints beside it") from error
        except ControllerError as error:
            if not isinstance(own_error(error), SslRayError) and type(error.controller_failure).__name__.startswith(STARTING):
                raise ResourceError(
                    f"{least} training workers of {resources} did not come up within {scale.start_timeout_s} s, three times: "
                    f"{' '.join(str(error.controller_failure).split())[:200]}; free or add nodes, or give them longer "
                    "(scale.start_timeout_s), and the same command goes on"
                ) from error
            raise
    summary = dict(result.return_value)
    if "error" in summary:
        raise summary["error"]
    return summary


STARTING = ("WorkerGroupStartup", "InsufficientClusterResources")
"""Begins of the names of Ray Train's errors about workers that did not come up."""


def in_thread(wait: Callable[[], Result]) -> Result:
    """Call a function that waits for Ray in another thread, so that Ctrl-C is answered at once, whatever is waited for.

    On Ctrl-C or SIGTERM, the connection to Ray is closed. This ends all that runs there for this process. Otherwise, in a
    notebook, the training would go on and write to a root that this process no longer holds.
    """
    ended: Future[Result] = Future()

    def work() -> None:
        try:
            ended.set_result(wait())
        except BaseException as error:
            ended.set_exception(error)

    threading.Thread(target=work, name="training", daemon=True).start()
    try:
        return ended.result()
    except (KeyboardInterrupt, SystemExit):
        import ray

        ray.shutdown()
        raise


def drop_unreadable_list(out: Folder) -> None:
    """Remove Ray Train's list of checkpoints where it is damaged; the training then starts again at its first step."""
    try:
        readable = not out.exists(CHECKPOINTS) or isinstance(out.read_json(CHECKPOINTS), dict)
    except DamagedError:
        readable = False
    if not readable:
        print(f"{out.file(CHECKPOINTS)} is damaged; the training starts again at its first step", flush=True)
        out.remove(CHECKPOINTS)


def train_worker(payload: dict[str, Any]) -> dict[str, Any]:
    """Runs on every worker of Ray Train."""
    began = time.time()
    import ray.train
    import torch

    from ssl_ray.train.run import run_training

    context = ray.train.get_context()
    restored = None
    if (saved := ray.train.get_checkpoint()) is not None:
        with saved.as_directory() as folder:
            restored = read_state(Folder(folder))

    def save(step: int, state: dict[str, Any] | None) -> None:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if state is not None:
                torch.save(state, os.path.join(folder, STATE))
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            # Every worker has to report; rank 0 alone brings the state.
            ray.train.report({"step": step}, checkpoint=checkpoint, checkpoint_dir_name=f"step-{step:08d}")

    try:
        return run_training(
            payload,
            began=began,
            rank=context.get_world_rank(),
            workers=context.get_world_size(),
            workers_on_node=context.get_local_world_size(),
            restored=restored,
            save=save,
            # On a local Ray no node is taken away, and Ray does not watch for it.
            notice=(lambda: ray.train.get_preemption_info() is not None) if payload["watched"] else None,
        )
    except SslRayError as error:
        if context.get_world_size() > 1 and not isinstance(error, HealthError):  # on health all workers decide alike
            raise  # the others wait for this one; only its failure ends them
        return {"error": error}  # the same data and settings would fail again: no restart


def read_state(folder: Folder) -> dict[str, Any] | None:
    """Read the saved state of a training; None where the file is damaged: then the training starts again at its first step."""
    import torch

    try:
        state = torch.load(io.BytesIO(folder.read_own(STATE)), map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError("it holds no state")
        return state
    except StorageError:
        raise  # a server that is away has lost nothing
    except (
        pickle.UnpicklingError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
        EOFError,
        OSError,
    ) as error:
        print(f"{folder.file(STATE)} is damaged ({' '.join(str(error).split())[:200]})", flush=True)
        return None


def train_here(payload: dict[str, Any]) -> dict[str, Any]:
    """The same run in this process: for tests, sweeps of small models and benchmarks, where starting workers costs more
    than the training itself."""
    began = time.time()
    import torch

    from ssl_ray.train.run import run_training

    folder = Folder(payload["out"]) / "training"
    restored = read_state(folder) if folder.exists(STATE) else None

    def save(step: int, state: dict[str, Any] | None) -> None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        folder.write_bytes(STATE, buffer.getvalue())

    return run_training(payload, began=began, rank=0, workers=1, workers_on_node=1, restored=restored, save=save)
