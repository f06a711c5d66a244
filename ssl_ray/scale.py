"""Where and how wide a job runs. Never part of a fingerprint: the same run may go on at another scale."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ssl_ray.config import Config
from ssl_ray.errors import ResourceError
from ssl_ray.machine import usable_cores

Count = Annotated[int, Field(ge=1)]
Threads = Annotated[int, Field(ge=1, le=1024)]
Share = Annotated[float, Field(gt=0)]


class Scale(Config):
    """Workers, actors and their shares of a machine.

    CPU requests are small on purpose: on two CPUs whole-CPU actors and readers starve each other without an error.
    """

    logical_cpus: Annotated[int, Field(ge=1, le=4096)] = 4  # what a local Ray is started with; may exceed the cores
    object_store_mb: Count = 300  # local Ray only

    train_workers: Annotated[int, Field(ge=0)] = 1  # processes, at most the lanes; 0: in the job's own process
    train_workers_min: Annotated[int, Field(ge=0)] = 0  # elastic: go on with so few, and with more again; 0: with all or none
    resize_check_s: Count = 60  # how often an elastic training looks whether there is room for more workers
    train_cpus: Share = 1.0  # logical CPUs that a training worker holds
    train_gpus: Annotated[float, Field(ge=0)] = 0.0
    train_threads: Annotated[int, Field(ge=0)] = 0  # torch threads of a training worker; 0: cores / workers; at most the cores
    checkpoint_steps: Count = 200  # what a kill can cost at most, in optimiser steps
    notice_steps: Count = 10  # how often a training on a cluster asks whether a node is to be taken away, in steps
    max_failures: Annotated[int, Field(ge=0)] = 2  # restarts of a training worker group
    cache_mb: Count = 1024  # decoded images that a training worker keeps in memory
    decode_threads: Threads = 2

    label_actors_min: Count = 1
    label_actors_max: Annotated[int, Field(ge=0)] = 1  # 0: in the job's own process
    label_cpus: Share = 0.5
    label_gpus: Annotated[float, Field(ge=0)] = 0.0
    label_threads: Annotated[int, Field(ge=0)] = 0  # torch threads of a labelling actor; 0: cores / actors; at most the cores
    label_batch: Annotated[int, Field(ge=0, le=2**16)] = 256  # images in one forward pass; 0: found by trial
    label_rows_per_file: Count = 2048  # rows of one label file: what a kill can cost at most

    trials: Annotated[int, Field(ge=0)] = 1  # of a sweep at once; 0: as many as the cluster holds

    cluster_actors: Annotated[int, Field(ge=0)] = 1  # processes that hold the points of k-means; 0: the job's own
    cluster_cpus: Share = 0.5
    cluster_threads: Annotated[int, Field(ge=0)] = 0  # threads of each; 0: cores / actors; at most the cores

    decode: Literal["fused", "split"] = "fused"  # in the labelling actor, or in tasks of their own
    decode_cpus: Share = 0.5  # logical CPUs of a decoding task, where it is split

    autoscaling: bool = False  # the cluster can grow, and does not say how far: refuse nothing
    start_timeout_s: Count = 120  # for workers to come up
    stall_timeout_s: Count = 600  # labelling without any progress

    @model_validator(mode="after")
    def _fewer(self) -> Scale:
        if self.train_workers_min > self.train_workers:
            raise ValueError(
                f"train_workers_min={self.train_workers_min} is more than train_workers={self.train_workers}; lower it"
            )
        return self


DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Files of the drivers of GPUs on Linux: NVIDIA's, AMD's, and that of Windows' Linux."""


def device_count() -> int:
    """Return the number of GPUs of this machine that torch can use; torch is imported only where there is a driver."""
    if sys.platform == "linux" and not any(map(os.path.exists, DRIVERS)):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def device_for(gpus: float, setting: str) -> str:
    """Return "cuda" where GPUs are asked for, else "cpu".

    Raises:
        ResourceError: torch sees no GPU on this machine.
    """
    if gpus and not device_count():
        raise ResourceError(f"{setting}={gpus:g} asks for a GPU, and torch sees none on this machine; set {setting}=0")
    return "cuda" if gpus else "cpu"


def check_devices(scale: Scale) -> None:
    """Check the GPUs for what runs in the job's own process; Ray knows those of its nodes.

    Raises:
        ResourceError: there are none.
    """
    if scale.train_workers == 0:
        device_for(scale.train_gpus, "scale.train_gpus")
    if scale.label_actors_max == 0:
        device_for(scale.label_gpus, "scale.label_gpus")


def local() -> Scale:
    """One machine: one training worker with all cores and, where there is one, a GPU; one labelling actor, likewise."""
    cores, gpu = usable_cores(), float(device_count() > 0)
    decoding = max(2, cores - 2) if gpu else 2  # a CPU trains more slowly than two threads decode, a GPU does not
    return Scale(logical_cpus=max(4, cores), train_gpus=gpu, label_gpus=gpu, decode_threads=decoding)


def cluster() -> Scale:
    """A Ray cluster that is there already (`RAY_ADDRESS`, or `ray job submit`): a GPU for every worker and actor."""
    return Scale(
        train_workers=2,
        train_gpus=1.0,
        trials=0,
        max_failures=100,  # spot machines go all the time
        label_actors_max=4,
        label_gpus=1.0,
        label_cpus=1.0,
        label_batch=512,
        cluster_actors=4,
        cluster_cpus=4.0,
        cluster_threads=4,
        cache_mb=8192,
        decode_threads=8,
        decode="split",  # a GPU eats more images than the CPUs beside it decode
        decode_cpus=1.0,
        start_timeout_s=1800,  # an autoscaler may have to buy nodes first
        stall_timeout_s=1800,
    )


def inline() -> Scale:
    """No Ray at all: everything in the job's own process, for tests and for models that train faster than Ray starts."""
    return Scale(**{**local().model_dump(), "train_workers": 0, "label_actors_max": 0, "cluster_actors": 0})


SCALES = {"inline": inline, "local": local, "cluster": cluster}

PROCESSES = ("train_workers", "train_workers_min", "label_actors_min", "label_actors_max", "cluster_actors", "decode")
"""Settings that only make sense with Ray."""


def automatic(changed: Collection[str]) -> tuple[str, str]:
    """Choose where a job runs: the name of a scale, and the reason.

    On one device, Ray's workers do the same work as the job's own process, and each stage waits until they have started. With
    several devices, or on a cluster, they share the work.

    Args:
        changed: names of the settings of the scale that the user gave.
    """
    if os.environ.get("RAY_ADDRESS"):
        return "local", "on the Ray cluster that RAY_ADDRESS names; --scale cluster asks for a GPU for each worker"
    if given := sorted(set(PROCESSES) & set(changed)):
        return "local", f"on Ray, because scale.{given[0]} is given"
    if (devices := device_count()) > 1:
        return "local", f"on Ray, because this machine has {devices} GPUs"
    return "inline", "in this process, because one device gains nothing from Ray; --scale local starts Ray"
