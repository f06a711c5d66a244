"""Trials on Ray Tune: who runs when, who is stopped, and what outsiders are told. What a trial computes is the caller's.

A trial leaves its results in files; Tune hears of its scores alone. So nothing of Tune's own state is needed to go on after a
kill: what is finished is not asked for again, and what a searcher learned is told to the next one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ssl_ray.cluster import capacity, check_resources, ensure_ray, plain_errors
from ssl_ray.errors import ConfigError
from ssl_ray.grids import Range
from ssl_ray.scale import Scale

OBJECTIVE = "objective"
"""What schedulers and searchers look at: the score on validation images, higher is better."""
JUDGED = "judged"
"""Models of the trial that have been judged: the time that schedulers count in."""

Report = Callable[[Mapping[str, Any]], None]
Work = Callable[[Mapping[str, Any], Report], None]
"""Runs one point, calls the second argument with `judged`, `objective` and whatever trackers may like, and keeps results."""

Tracker = Literal["mlflow", "tensorboard", "wandb"]


def run_trials(
    work: Work,
    points: Sequence[Mapping[str, Any]],
    scale: Scale,
    *,
    storage: str,
    name: str,
    done: Callable[[Mapping[str, Any], str | None], None],
    name_of: Callable[[Mapping[str, Any]], str],
    asha: bool = False,
    optuna: Mapping[str, Range] | None = None,
    count: int = 0,
    seed: int = 0,
    known: Sequence[tuple[Mapping[str, Any], float]] = (),
    trackers: Sequence[Tracker] = (),
) -> None:
    """Run all points, or as many as a searcher wants, and return when no trial is left.

    A trial without workers of its own (`scale.train_workers=0`) computes in a Tune actor that the next trial takes over: it
    costs milliseconds to start. Any other only directs, and its trainings and labellings ask the cluster for workers.

    Args:
        work: see `Work`; it is sent to the actors.
        points: what the trials are given, where no searcher proposes them.
        storage: folder or `s3://` prefix for Tune's own files, which nobody needs.
        done: is told of every trial that ended: its point, and what killed it (None: nothing did, or a scheduler).
        name_of: how a point is called.
        asha: stop trials that are behind after as many models (asynchronous successive halving, Li et al. 2020).
        optuna: ranges for Optuna to propose `count` points from; `known` are points with their objective from before.
        trackers: who else is told of the scores, through Ray's own callbacks.

    Raises:
        ConfigError: Optuna or a tracker is not installed.
        ResourceError: a trial asks for more than the cluster can ever have.
    """
    callbacks = [_tracker(kind, name) for kind in trackers]
    searcher = None if optuna is None else _optuna(optuna, seed, known)
    # Every trial of a killed sweep is in files of ours, and a job's Ctrl-C is a job's.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # a model may have no score on validation images
    ensure_ray(scale, worker_lines=False)
    check_trial(scale)
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    class Watch(tune.Callback):
        """Tells the user of trials that start, and the caller of those that ended."""

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            print(f"> {name_of(_point(trial.config, points))}", flush=True)

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            done(_point(trial.config, points), None)

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            if not trial.is_finished():
                return  # it is started anew
            text = trial.get_error() if hasattr(trial, "get_error") else None
            last = str(text).strip().splitlines()[-1] if text else "its worker died"
            done(_point(trial.config, points), last)

    def trainable(config: dict[str, Any], path: list[str], points: Sequence[Mapping[str, Any]]) -> None:
        sys.path[:0] = [entry for entry in path if entry not in sys.path and os.path.isdir(entry)]
        work(_point(config, points), tune.report)

    inline = scale.train_workers == 0
    # A trial that only directs holds next to nothing: its workers must find room beside it. Tune refuses zero.
    resources = {"CPU": scale.train_cpus, "GPU": scale.train_gpus} if inline else {"CPU": 0.01}
    bound = tune.with_parameters(trainable, path=[str(Path(__file__).parents[2])], points=list(points))
    scheduler = ASHAScheduler(time_attr=JUDGED, max_t=100, grace_period=1, reduction_factor=2) if asha else FIFOScheduler()
    judged_by = {"metric": OBJECTIVE, "mode": "max"} if asha or searcher is not None else {}
    tuner = tune.Tuner(
        tune.with_resources(bound, resources),
        # With its number goes what it is, for trackers.
        param_space={}
        if searcher is not None
        else {"point": tune.grid_search([{"number": n, **p} for n, p in enumerate(points)])},
        tune_config=tune.TuneConfig(
            scheduler=scheduler,
            search_alg=searcher,
            num_samples=count if searcher is not None else 1,
            max_concurrent_trials=scale.trials or (None if inline else at_once(scale)),
            reuse_actors=inline,
            trial_name_creator=lambda trial: name_of(_point(trial.config, points)),
            trial_dirname_creator=lambda trial: trial.trial_id,
            **judged_by,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=storage,
            verbose=0,
            callbacks=[Watch(), *callbacks],
            failure_config=tune.FailureConfig(max_failures=scale.max_failures),
        ),
    )
    with plain_errors():
        tuner.fit()


def check_trial(scale: Scale) -> None:
    """Raises ResourceError if one trial alone asks for more than the cluster can ever have: it would wait for ever."""
    if scale.autoscaling:
        return
    workers = scale.train_workers_min or max(1, scale.train_workers)
    check_resources("scale.train_workers", workers, scale.train_cpus, scale.train_gpus)
    if scale.label_actors_max:
        check_resources("scale.label_actors_min", scale.label_actors_min, scale.label_cpus, scale.label_gpus)


def at_once(scale: Scale) -> int:
    """Return how many trials with workers of their own the cluster holds side by side now."""
    have, most = capacity(), []
    for kind, train, label in (("CPU", scale.train_cpus, scale.label_cpus), ("GPU", scale.train_gpus, scale.label_gpus)):
        need = max(scale.train_workers * train, scale.label_actors_max * label)
        if need:
            most.append(int(have.get(kind, 0.0) / need))
    return max(1, min(most, default=1))


def _point(config: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    return points[config["point"]["number"]] if points else config


def _optuna(ranges: Mapping[str, Range], seed: int, known: Sequence[tuple[Mapping[str, Any], float]]) -> Any:
    try:
        import optuna
        from ray.tune.search.optuna import OptunaSearch
    except ImportError:
        raise ConfigError(
            "--searcher optuna needs the package optuna; install it (pip install 'ssl-ray[search]'), or take --searcher random"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kinds = optuna.distributions

    def distribution(found: Range) -> Any:
        if found.kind == "choice":
            return kinds.CategoricalDistribution(list(found.values))
        if found.kind == "integer":
            return kinds.IntDistribution(int(found.low), int(found.high))
        return kinds.FloatDistribution(found.low, found.high, log=found.kind == "loguniform")

    space = {path: distribution(found) for path, found in ranges.items()}
    told = {}
    if known:
        told = {"points_to_evaluate": [dict(point) for point, _ in known], "evaluated_rewards": [value for _, value in known]}
    return OptunaSearch(space, metric=OBJECTIVE, mode="max", seed=seed, **told)


def check_tracker(kind: str) -> None:
    """Raises ConfigError if a tracker's package is not installed."""
    _tracker(kind, "check")


def _tracker(kind: str, name: str) -> Any:
    from importlib.util import find_spec

    package = {"mlflow": "mlflow", "wandb": "wandb", "tensorboard": "tensorboardX"}[kind]
    if find_spec(package) is None:
        raise ConfigError(f"--tracker {kind} needs the package {package}; install it, or leave the tracker out")
    if kind == "mlflow":
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        return MLflowLoggerCallback(experiment_name=name)
    if kind == "wandb":
        from ray.air.integrations.wandb import WandbLoggerCallback

        return WandbLoggerCallback(project=name)
    from ray.tune.logger import TBXLoggerCallback

    return TBXLoggerCallback()
