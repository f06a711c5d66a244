"""Which Ray Train trainer a run gets, and what of Ray Train's own help it needs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray.train import Result, RunConfig, ScalingConfig
from ray.train.backend import BackendConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from ssl_ray.cluster import own_ray
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
    control = trainer._initialize_and_run_controller if _in_a_trial() else _control_here
    trainer._initialize_and_run_controller = lambda **given: control(**(given | policies))
    usual = trainer._create_default_callbacks
    unneeded = _unneeded()
    trainer._create_default_callbacks = lambda: [callback for callback in usual() if not isinstance(callback, unneeded)]
    # Its own way with Ctrl-C ends a job with code 1 and without a word; ours says that the same command goes on.
    trainer._register_sigint_handler = lambda controller: None
    return trainer


def _in_a_trial() -> bool:
    return ray.get_runtime_context().get_actor_id() is not None


class _Group(WorkerGroup):
    """Ray's, whose workers get no handle of the controller, through which ours would ask it nothing: it is no actor here."""

    def _init_train_context_on_workers(self, workers: Any, sync_actor: Any, train_context_args: dict[str, list[Any]]) -> None:
        told = [
            worker.actor.init_train_context.remote(
                train_run_context=self._train_run_context,
                distributed_context=worker.distributed_context,
                synchronization_actor=sync_actor,
                storage_context=self._storage_context,
                worker_callbacks=self._worker_callbacks_to_propagate,
                controller_actor=None,
                **{name: values[place] for name, values in train_context_args.items()},
            )
            for place, worker in enumerate(workers)
        ]
        ray.get(told)
        self._decorate_worker_log_file_paths(workers)


class _Controller(TrainController):
    worker_group_cls = _Group


def _control_here(**given: Any) -> Result:
    """Ray's controller in the job's own process, which only waits for it: as an actor it would be a process whose imports every
    training waits for, five to seven seconds on two cores. When the job's process dies its workers do, either way."""
    if own_ray():  # on a cluster its lines say what is waited for
        logging.getLogger("ray.train").setLevel(logging.WARNING)
    controller = _Controller(**given)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(controller.run())
    else:  # as in a notebook, whose cells run in a loop
        with ThreadPoolExecutor(1) as beside:
            beside.submit(asyncio.run, controller.run()).result()
    return controller.get_result()


def _unneeded() -> tuple[type, ...]:
    """Ray's own callbacks that start a process each, which imports for as long as the worker beside it does.

    The one that hands out data sets has none to hand out: workers read their shards themselves. The one that watches over the
    workers' places, for a controller that dies, matters in a trial of a sweep, whose job goes on; where a job's own process
    trains, Ray takes the places back when the job ends.
    """
    return (DatasetsCallback,) if _in_a_trial() else (DatasetsCallback, PlacementGroupCleanerCallback)
