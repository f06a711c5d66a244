"""Starting Ray, or joining it: quietly, with bounded waits and without telemetry.

Ray is started by the first stage that needs it, so that a second call which only loads results does not wait for it.
"""

from __future__ import annotations

import _thread
import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

from ssl_ray.errors import ResourceError, SslRayError
from ssl_ray.machine import check_memory, usable_cores, usable_memory
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
WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
LOCAL_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",  # bound to this host; a cluster keeps the mode that it was started with
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # Ray runs workers at niceness 15. Training's threads wait for each other, so one that yields to Ray's own helpers
    # stops all. Three noisy pairs against the bare loop: 0.87 to 0.95 with it, 0.91 to 1.16 without; not settled.
    "RAY_worker_niceness": "0",
}


_ours = _lost = False


def own_ray() -> bool:
    """Whether Ray runs on this machine alone, started by this process."""
    return _ours


def is_lost() -> bool:
    """Return whether the cluster went away while this process used it."""
    return _lost


def ensure_ray(scale: Scale, worker_lines: bool = True) -> None:
    """Start a local Ray, or connect to the cluster that `RAY_ADDRESS` (set by `ray job submit`) names.

    Args:
        worker_lines: show what workers print.
    """
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
            _check_answers(os.environ["RAY_ADDRESS"])
            ray.init(log_to_driver=worker_lines)
        else:
            store = scale.object_store_mb * 2**20
            check_memory(f"scale.object_store_mb={scale.object_store_mb}", store, "lower it", usable_memory())
            print("Ray starts (some seconds)", flush=True)
            begin = time.monotonic()
            _start_local(
                address="local",
                num_cpus=scale.logical_cpus,
                include_dashboard=True,  # without it Ray Train's cleaner cannot query the state of actors
                dashboard_port=0,
                object_store_memory=store,
                _temp_dir=_short_folder(),
                logging_level="ERROR",
                log_to_driver=worker_lines,
            )
            print(f"Ray is up ({time.monotonic() - begin:.0f} s); its workers import for some seconds more", flush=True)
    threading.Thread(target=_watch, args=(ray.get_runtime_context().gcs_address,), name="cluster-watch", daemon=True).start()


def _check_answers(address: str) -> None:
    """Ray itself asks for minutes, in many lines, and ends with a traceback.

    Raises:
        ResourceError: nobody listens at `host:port`; other forms of addresses are Ray's to judge.
    """
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        return
    for last in (False, False, True):
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if last:
                raise ResourceError(
                    f"no Ray cluster answers at {address} (RAY_ADDRESS): {error}; start it or correct the address, and the "
                    "same command goes on; without RAY_ADDRESS it runs on this machine alone"
                ) from None
            time.sleep(1)


def stays_one_node(scale: Scale) -> bool:
    """Whether the head is all that there is: when it goes, so does the job, and a notice would find nobody to save for."""
    import ray

    alone = sum(node["Alive"] for node in ray.nodes()) == 1
    return alone and not (scale.autoscaling or scale.train_workers_min)


@contextlib.contextmanager
def notices_where_they_help(scale: Scale) -> Iterator[None]:
    """Around a training: without Ray Train's preemption watcher, a process of imports, where no node is ever reclaimed (a
    laptop, a head alone). Decided anew for every training, since clusters grow; what the user said stands."""
    if os.environ.get(WATCHER) is not None or not (own_ray() or stays_one_node(scale)):
        yield
        return
    os.environ[WATCHER] = "0"
    try:
        yield
    finally:
        del os.environ[WATCHER]


def _start_local(**options: Any) -> None:
    """Ray on this machine; a second try where it did not come up in time, as on a machine that is busy.

    Raises:
        ResourceError: it did not come up twice.
    """
    import ray

    for last in (False, True):
        try:
            ray.init(**options)
            return
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            if last:
                raise ResourceError(
                    "Ray did not start in time, twice: this machine is too busy; run the same command later, or without Ray "
                    "(--scale inline)"
                ) from None
            print("Ray did not start in time; once more", flush=True)


SILENCE_S = float(os.environ.get("SSL_RAY_SILENCE_S", "45"))
"""How long a cluster's head may be silent. Ray itself ends the process after a minute, in many words and none of ours."""


def _watch(address: str) -> None:
    """End the job with one line when the cluster goes away: whatever waits for it would wait for ever."""
    import ray

    global _lost
    host, _, port = address.rpartition(":")
    heard = time.monotonic()
    while True:
        time.sleep(min(5.0, SILENCE_S / 3))
        try:
            if not ray.is_initialized() or ray.get_runtime_context().gcs_address != address:
                return  # we left
        except Exception:  # we are leaving: Ray is half shut down
            return
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=5):
            heard = time.monotonic()
        if time.monotonic() - heard > SILENCE_S and ray.is_initialized():
            sys.stdout.flush()
            print(
                f"error: the Ray cluster at {address} went away: its head has not answered for {SILENCE_S:.0f} s; start it, or "
                "join another one (RAY_ADDRESS), and the same command goes on where it was",
                file=sys.stderr,
                flush=True,
            )
            _lost = True
            _thread.interrupt_main()  # it waits for an answer of Ray that will not come
            return


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
    """Check that the cluster holds `count` processes, each of them on one node, instead of waiting for ever.

    Raises:
        ResourceError: with what there is, and the settings to change.
    """
    have = capacity()
    for kind, each in (("CPU", cpus), ("GPU", gpus)):
        if each and count * each > have.get(kind, 0.0) + 1e-6:
            raise ResourceError(
                f"{setting}={count} asks for {count * each:g} {kind} ({each:g} each), and the cluster has "
                f"{have.get(kind, 0.0):g}; lower it or the share of each, or add nodes{_hint()}"
            )
    need = {kind: each for kind, each in (("CPU", cpus), ("GPU", gpus)) if each}
    if not any(all(node.get(kind, 0.0) + 1e-6 >= each for kind, each in need.items()) for node in node_shapes()):
        raise ResourceError(
            f"{setting}: each asks for {' and '.join(f'{each:g} {kind}' for kind, each in need.items())} on one node, and no "
            f"node of the cluster has that; lower the share of each, or add larger nodes{_hint()}"
        )


def _hint() -> str:
    return "" if own_ray() else " (scale.autoscaling=true waits for nodes that an autoscaler adds)"


def node_shapes() -> list[dict[str, float]]:
    """Return the resources of each node of the cluster, by kind."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def capacity() -> dict[str, float]:
    """Return the resources of the cluster, by kind."""
    import ray

    return dict(ray.cluster_resources())


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
    return threads or max(1, usable_cores() // max(1, holders))
