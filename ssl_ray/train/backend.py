"""Which Ray Train trainer a run gets, and what of Ray Train's own help it needs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.backend import BackendConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from ssl_ray.train.controller import control_here
from ssl_ray.train.elastic import LanesPolicy
from ssl_ray.train.failures import NotTwice


def make_trainer(
    function: Callable[[dict[str, Any]], Any],
    payload: dict[str, Any],
    scaling: ScalingConfig,
    run: RunConfig,
    allowed: Sequence[int],
) -> DataParallelTrainer:
    """`TorchTrainer`; or, for one CPU worker, its base class.

    A single worker has no process group to join, and the base class's controller need not import torch: that is three
    seconds of every training stage on two cores.

    Args:
        allowed: numbers of workers that an elastic run may have.
    """
    trainer: DataParallelTrainer
    if scaling.num_workers == 1 and not scaling.use_gpu:
        trainer = DataParallelTrainer(
            function, train_loop_config=payload, backend_config=BackendConfig(), scaling_config=scaling, run_config=run
        )
    else:
        from ray.train.torch import TorchTrainer

        trainer = TorchTrainer(function, train_loop_config=payload, scaling_config=scaling, run_config=run)
    policies: dict[str, Any] = {"failure_policy": NotTwice(run.failure_config)}
    if scaling.elasticity_enabled:
        policies["scaling_policy"] = LanesPolicy(scaling, allowed)
    # Ray Train's own record of runs, where a user switched it on, knows actors alone.
    as_actor = _in_a_trial() or os.environ.get("RAY_TRAIN_ENABLE_STATE_TRACKING", "0") != "0"
    control = trainer._initialize_and_run_controller if as_actor else control_here
    trainer._initialize_and_run_controller = lambda **given: control(**(given | policies))
    usual = trainer._create_default_callbacks
    unneeded = _unneeded()
    trainer._create_default_callbacks = lambda: [callback for callback in usual() if not isinstance(callback, unneeded)]
    # Its own way with Ctrl-C ends a job with code 1 and without a word; ours says that the same command goes on.
    trainer._register_sigint_handler = lambda controller: None
    return trainer


def _in_a_trial() -> bool:
    return ray.get_runtime_context().get_actor_id() is not None


def _unneeded() -> tuple[type, ...]:
    """Ray's own callbacks that start a process each, which imports for as long as the worker beside it does.

    The one that hands out data sets has none to hand out: workers read their shards themselves. The one that watches over the
    workers' places, for a controller that dies, matters in a trial of a sweep, whose job goes on; where a job's own process
    trains, Ray takes the places back when the job ends.
    """
    return (DatasetsCallback,) if _in_a_trial() else (DatasetsCallback, PlacementGroupCleanerCallback)
