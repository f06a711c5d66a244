"""Which Ray Train trainer a run gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ray.train import RunConfig, ScalingConfig
from ray.train.backend import BackendConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from ssl_ray.train.elastic import LanesPolicy


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
    if scaling.elasticity_enabled:
        begin = trainer._initialize_and_run_controller
        policy = LanesPolicy(scaling, allowed)
        trainer._initialize_and_run_controller = lambda **given: begin(**(given | {"scaling_policy": policy}))
    # Its own way with Ctrl-C ends a job with code 1 and without a word; ours says that the same command goes on.
    trainer._register_sigint_handler = lambda controller: None
    return trainer
