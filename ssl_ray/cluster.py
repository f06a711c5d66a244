"""Starting Ray, or joining it: quietly, with bounded waits and without telemetry.

Ray is started by the first stage that needs it, so that a second call which only loads results does not wait for it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

from ssl_ray.errors import ResourceError, SslRayError
from ssl_ray.scale import Scale

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no telemetry
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_COLOR_PREFIX": "0",
    "RAY_DATA_USE_DATASOURCE_V2": "0",  # its 32 reader actors stall small machines
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else every line appears twice
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # a report waits for the controller's poll
}
LOCAL_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",  # bound to this host; a cluster keeps the mode that it was started with
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody reclaims a laptop; the watcher costs a process of imports
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # Ray runs workers at niceness 15. Training's threads wait for each other, so one that yields to Ray's own helpers
    # stops all. Three noisy pairs against the bare loop: 0.87 to 0.95 with it, 0.91 to 1.16 without; not settled.
    "RAY_worker_niceness": "0",
}


_ours = False


def own_ray() -> bool:
    """Whether Ray runs on this machine alone, started by this process."""
    return _ours


def ensure_ray(scale: Scale) -> None:
    """Start a local Ray, or connect to the cluster that `RAY_ADDRESS` (set by `ray job submit`) names."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(scale.start_timeout_s)
    joins = bool(os.environ.get("RAY_ADDRESS"))
    if not joins:
        for key, value in LOCAL_ENVIRONMENT.items():
            os.environ.setdefault(key, value)
    import ray

    global _ours
    if ray.is_initialized():
        return
    _ours = not joins
    with own_signals():
        if joins:
            ray.init(log_to_driver=True)
        else:
            print("Ray starts (some seconds)", flush=True)
            ray.init(
                address="local",
                num_cpus=scale.logical_cpus,
                include_dashboard=True,  # without it Ray Train's cleaner cannot query the state of actors
                dashboard_port=0,
                object_store_memory=scale.object_store_mb * 2**20,
                _temp_dir=_short_folder(),
                logging_level="ERROR",
                log_to_driver=True,
            )


@contextlib.contextmanager
def own_signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM go on meaning what they meant: Ray takes both for itself, and ends a job without a word of ours."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


def check_resources(setting: str, count: int, cpus: float, gpus: float) -> None:
    """Refuse at once what the cluster cannot hold, instead of waiting for it for ever.

    Raises:
        ResourceError: with what there is, and the settings to change.
    """
    import ray

    have = ray.cluster_resources()
    for kind, each in (("CPU", cpus), ("GPU", gpus)):
        if each and count * each > have.get(kind, 0.0) + 1e-6:
            raise ResourceError(
                f"{setting}={count} asks for {count * each:g} {kind} ({each:g} each), and the cluster has "
                f"{have.get(kind, 0.0):g}; lower it or the share of each, or add nodes"
            )


def _short_folder() -> str:
    """Ray keeps Unix sockets in its folder, whose paths are limited to about a hundred bytes."""
    base = tempfile.gettempdir()
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return os.path.join(base if len(base) < 30 else "/tmp", f"ssl_ray-{user}")


def quiet_data() -> Any:
    """Ray Data's context with bounded waits; progress bars stay on."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.print_on_execution_start = False
    context.enable_progress_bars = sys.stderr.isatty()
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context.use_datasource_v2 = False
    return context


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Around a wait for Ray: an error of ours that a worker raised comes out as itself."""
    try:
        yield
    except Exception as error:
        if (ours := own_error(error)) is error:
            raise
        raise ours from error


def own_error(error: BaseException) -> BaseException:
    """The error of ours that a worker raised, out of the wrappings that Ray put around it; or what was given."""
    pending, seen = [error], set()
    while pending:
        found = pending.pop(0)
        if id(found) in seen:
            continue
        seen.add(id(found))
        # Ray derives a class from ours, whose text is a whole traceback; the plain one is its cause.
        if isinstance(found, SslRayError) and not isinstance(found, _ray_task_error()):
            return found
        wrapped = [getattr(found, "cause", None), found.__cause__, *(getattr(found, "worker_failures", None) or {}).values()]
        pending += [inner for inner in wrapped if isinstance(inner, BaseException)]
    return error


def _ray_task_error() -> type[BaseException]:
    import ray.exceptions

    return ray.exceptions.RayTaskError


def cores_for(holders: int, threads: int) -> int:
    """Torch threads for each of `holders` processes on a node: as asked for, or an equal share of the cores."""
    return threads or max(1, (os.cpu_count() or 1) // max(1, holders))


MANAGING = ("gcs_server", "ray-dashboard", "log_monitor.py", "ray::TrainController", "ray::PlacementGroupCleaner",
            "ray::SynchronizationActor", "ray::DatasetManager")  # fmt: skip
"""Processes of Ray that manage and do not compute. The raylet is none, since what it starts would inherit its niceness; nor are
idle workers, which will compute."""


def make_way(driver: int) -> None:
    """Let the managing processes of the local Ray that `driver` started step aside for the process that trains.

    Training's threads wait for each other, so that one which shares its core for a moment holds up all. Threads have a
    niceness each, on Linux; where there is no /proc nothing happens.
    """
    try:
        parents = {int(name): _parent(int(name)) for name in os.listdir("/proc") if name.isdigit()}
    except OSError:
        return
    for pid in parents:
        line, up = pid, 0
        while line not in (0, 1, driver) and up < 8:
            line, up = parents.get(line, 0), up + 1
        if line != driver or pid == driver:
            continue
        with contextlib.suppress(OSError):
            with open(f"/proc/{pid}/cmdline", "rb") as stream:
                title = stream.read().decode(errors="replace")
            words = title.split("\0")
            names = [word if word.startswith("ray::") else os.path.basename(word) for word in words[:4]]
            served = any("/ray/dashboard/" in word or "/ray/_private/runtime_env/" in word for word in words[:4])
            if names[0] == "raylet" or not (served or any(name.startswith(MANAGING) for name in names)):
                continue
            for thread in os.listdir(f"/proc/{pid}/task"):
                os.setpriority(os.PRIO_PROCESS, int(thread), max(10, os.getpriority(os.PRIO_PROCESS, int(thread))))


def _parent(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return int(stream.read().rsplit(")", 1)[1].split()[1])
    except (OSError, IndexError, ValueError):
        return 0
