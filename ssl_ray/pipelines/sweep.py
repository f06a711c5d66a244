"""How many labels do I need? Any job over a grid or a search, with seeds; what trials have in common is computed once.

    ssl-ray sweep                                              # labels against self-training, on digits
    ssl-ray sweep noisy_student:fashion --grid label_fraction=0.1,1.0 --grid student.net.width=16,32 --seeds 3
    ssl-ray sweep self_training:miniature-table2 --grid augmentation=S1,S4 --grid init=random,pretrained
    ssl-ray sweep noisy_student --search 'teacher.optim.lr=loguniform(0.01,0.5)' --asha --set images.val_images=500
    ssl-ray sweep figure1 --plan
    ray job submit --working-dir . -- python jobs/sweep.py simclrv2-labels --root s3://bucket/sweep --scale cluster

Small models are trained in the trials' own processes (`--scale inline`, the default); with `--scale local` or `cluster` every
trial trains and labels on Ray workers of its own.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ssl_ray.artifacts import Report
from ssl_ray.cli import Options, base_parser, options_from, owned, whole
from ssl_ray.cluster import cores_for
from ssl_ray.config import override, problems_of
from ssl_ray.errors import ConfigError, HealthError, SslRayError
from ssl_ray.filesystems import absolute
from ssl_ray.grids import Trial, drawn, parse_axis, parse_range, product
from ssl_ray.lock import hold
from ssl_ray.machine import usable_cores
from ssl_ray.planning.estimate import Estimate
from ssl_ray.recipes.sweep import RECIPES, WORDS, SweepRecipe, recipe
from ssl_ray.report.terminal import finish_sweep
from ssl_ray.scale import Scale, device_count
from ssl_ray.stage import Run
from ssl_ray.storage import Folder
from ssl_ray.tune.sweep import Sweep, planned, run_sweep, thrown
from ssl_ray.tune.trials import check_tracker

DEFAULT_ROOT = "runs/sweep"
MANY = 100
"""Trials that need a --yes."""
MOST = 100_000
"""Trials of a grid at most."""


def load(job: str) -> Any:
    """Return the module of a pipeline. By name, since the workers of trials have it too."""
    return importlib.import_module(f"ssl_ray.pipelines.{job}")


def chosen_sweep(options: Options, parsed: argparse.Namespace) -> SweepRecipe:
    """The named sweep, or `JOB:RECIPE`, with what the command line adds.

    Raises:
        ConfigError: an unknown name, an axis that cannot be read, or none at all.
    """
    job, _, name = parsed.recipe.partition(":")
    grid = dict(parse_axis(text) for text in parsed.grid)
    search = dict(text.partition("=")[::2] for text in parsed.search)
    for text in parsed.search:
        parse_range(text)
    changes: dict[str, Any] = {
        key: getattr(parsed, key) for key in ("seeds", "trials", "metric") if getattr(parsed, key) is not None
    }
    if job in WORDS:
        base: dict[str, Any] = {"job": job, "recipe": name or "demo", "model": parsed.model}
    elif parsed.recipe in RECIPES:
        base = recipe(parsed.recipe).model_dump()
    else:
        raise ConfigError(
            f"there is no sweep {parsed.recipe!r}; take one of {', '.join(RECIPES)}, or JOB:RECIPE with one of the jobs "
            f"{', '.join(WORDS)}"
        )
    mine = set(WORDS[base["job"]].seeds)
    if taken := sorted(mine & {*grid, *search, *base.get("grid", {}), *base.get("search", {})}):
        raise ConfigError(f"{taken[0]} is what seeds set in every trial; say --seeds N instead of an axis")
    if taken := sorted((mine - {"seed"}) & set(options.settings)):
        raise ConfigError(f"{taken[0]} is what seeds set in every trial; --set seed=N begins with another seed")
    if "seed" in options.settings:
        changes["first_seed"] = options.settings.pop("seed")
    merged = {**base, **changes, "grid": {**base.get("grid", {}), **grid}, "search": {**base.get("search", {}), **search},
              "settings": {**base.get("settings", {}), **options.settings}}  # fmt: skip
    if parsed.trials is not None and not merged["search"]:
        raise ConfigError("--trials counts the points of a --search, and there is none; a grid has as many as its values make")
    try:
        return SweepRecipe.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(problems_of(error)) from None


def points_of(sweep: Sweep, parsed: argparse.Namespace) -> tuple[list[Trial], bool]:
    """The trials, and whether a searcher proposes them instead.

    Raises:
        ConfigError: too many; a search without validation images to choose by; a searcher or ASHA with several seeds.
    """
    found = sweep.recipe
    if parsed.asha and found.seeds > 1:
        raise ConfigError(
            "--asha stops trials that fall behind, and the mean of the seeds that are left would be too good; choose with one "
            "seed first, then repeat what was chosen with --seeds N and without --asha"
        )
    searcher = bool(found.search) and parsed.searcher == "optuna"
    if found.search:
        if searcher and (found.grid or found.variants or found.seeds > 1):
            raise ConfigError(
                "Optuna proposes points one after the other: leave --grid and --seeds out, or take --searcher random"
            )
        ranges = dict(parse_range(f"{path}={text}") for path, text in found.search.items())
        points = drawn(ranges, found.trials, found.first_seed, found.axes)
        trials = [Trial(trial.point, seed) for trial in points for seed in found.seed_numbers]
    else:
        size = math.prod(map(len, found.axes.values())) * found.seeds
        if size > MOST:
            raise ConfigError(f"the grid has {size:,} trials, more than {MOST:,}; name fewer values")
        trials = product(found.axes, found.seed_numbers)
    trials = list({trial.name: trial for trial in trials}.values())  # a search over few values draws some twice
    if len(trials) > MANY and not parsed.yes:
        raise ConfigError(
            f"the sweep has {len(trials):,} trials, more than {MANY}; say --yes to run them, or name fewer values"
        )
    if searcher or parsed.asha:
        _check_validation(found.job, sweep.settled(trials[0]))
    return trials, searcher


def _check_validation(job: str, settled: Any) -> None:
    if job == "evaluate":
        raise ConfigError(
            "evaluate scores test images alone, which choose nothing; take --grid, without --asha or --searcher optuna"
        )
    if job == "hpt":
        there = all(target.images.val_images for target in settled.targets.values())
    else:
        there = bool(settled.images is not None and settled.images.val_images)
    if not there:
        raise ConfigError(
            "a search or --asha chooses by scores on validation images, and there are none; set --set images.val_images=N "
            "(test images choose nothing)"
        )


def show_costs(options: Options, sweep: Sweep, trials: list[Trial]) -> None:
    """The plan of the first trial that has something to do; a stage counts as often as it differs between trials."""
    open_stages: dict[str, set[str]] = {}
    first = None
    for trial in trials:
        run = Run(sweep.root, sweep.scale, options.rerun, shared=True, plan=True, echo=lambda line: None)
        sweep.run(trial, run)
        todo = {name: part.record.fingerprint for name, part in run.stages.items() if not part.record.computed}
        first = first or (trial if todo else None)
        for name, mark in todo.items():
            open_stages.setdefault(name, set()).add(mark)
    print(f"{first.name} is tried, and stands for the others" if first else "all stages are finished", flush=True)
    with options.run(shared=True) as run:
        sweep.run(first or trials[0], run)
        estimates = getattr(run.measure, "estimates", [])
        for estimate in estimates:
            estimate.repeat(len(open_stages.get(estimate.stage, ())) or 1)
        if estimates:
            for stage in sorted(open_stages.keys() - {estimate.stage for estimate in estimates}):
                untried = Estimate(stage, "", note="is not a stage of the trial that was tried")
                untried.repeat(len(open_stages[stage]))
                estimates.append(untried)


def side_by_side(scale: Scale) -> Scale:
    """Room for the trials that run at once in processes of their own, and each one's part of the cores."""
    if scale.train_workers:
        return scale
    cores = usable_cores()
    trials = scale.trials or cores
    devices = device_count()
    gpus = min(scale.train_gpus, devices / trials) if devices else scale.train_gpus  # trials share those of this machine
    threads = cores_for(trials, scale.train_threads)
    return override(
        scale,
        {
            "trials": trials,
            "train_gpus": gpus,
            "logical_cpus": max(scale.logical_cpus, math.ceil(trials * scale.train_cpus)),
            **({"train_threads": threads, "label_threads": threads, "cluster_threads": threads} if trials > 1 else {}),
        },
    )


def main(arguments: Sequence[str] | None = None) -> Report | None:
    """Run the command, and return its report; None for a plan."""
    parser = base_parser("sweep", __doc__.split("\n\n")[0], scale="inline")
    parser.add_argument("--grid", action="append", default=[], metavar="A=V,V", help="an axis: a path or word, and its values")
    parser.add_argument(
        "--search",
        action="append",
        default=[],
        metavar="A=RANGE",
        help="loguniform(a,b), uniform(a,b), integer(a,b), choice(a,b)",
    )
    parser.add_argument("--seeds", type=whole, metavar="N", help="repeat every point with N seeds")
    parser.add_argument("--trials", type=whole, metavar="N", help="points of a search (default: 20)")
    parser.add_argument(
        "--searcher", choices=["random", "optuna"], default="random", help="who proposes the points of a search"
    )
    parser.add_argument("--asha", action="store_true", help="stop trials that fall behind on validation images")
    parser.add_argument("--metric", metavar="NAME", help="of the scores (default: what the task is judged by)")
    parser.add_argument("--model", metavar="CHECKPOINT", help="what `evaluate` judges")
    parser.add_argument(
        "--tracker", action="append", default=[], choices=["mlflow", "tensorboard", "wandb"], help="tell it the scores too"
    )
    parser.add_argument("--yes", action="store_true", help=f"allow more than {MANY} trials")
    options, parsed = options_from(parser, [*RECIPES, "JOB:RECIPE"], arguments)
    if parsed.recipe.startswith("hpt"):  # the user's images are one target of several there
        renamed = {re.sub(r"^images\.", "targets.own.images.", path): value for path, value in options.settings.items()}
        options = replace(options, settings=renamed)
    chosen = chosen_sweep(options, parsed)
    here = str(Path(__file__).resolve().parents[2])
    if here not in sys.path:
        sys.path.insert(0, here)
    # Ray's workers import the pipelines by name.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        dict.fromkeys([here, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))])
    )
    scale = side_by_side(options.scale)
    # These two have labeled images of their own, which other test images may belong to.
    given = list(options.settings) if chosen.job in ("noisy_student", "simclrv2") else owned(options, parsed)
    where = options.root if options.root != DEFAULT_ROOT else f"{DEFAULT_ROOT}/{parsed.recipe.replace(':', '-')}"
    options = replace(options, root=where, scale=scale)
    sweep = Sweep(chosen, given, absolute(where), scale, load)
    if options.show is not None:
        options.apply(sweep.base)
    for kind in parsed.tracker:
        check_tracker(kind)
    trials, searcher = points_of(sweep, parsed)
    stages = planned(sweep, trials, options.rerun)
    asked = sum(len(marks) for name, marks in stages.items() if name != "report")
    print(f"{len(trials)} trials of {chosen.job} {chosen.recipe}; {asked} different stages: "
          + ", ".join(f"{name} {len(marks)}" for name, marks in stages.items() if name != "report"), flush=True)  # fmt: skip
    if options.plan is not None:
        if options.plan == "measure":
            show_costs(options, sweep, trials)
        return None
    root = Folder(sweep.root)
    root.ensure_writable()
    hold(root)
    for name in options.rerun:
        thrown(root, name)
    report = run_sweep(sweep, trials, searcher=searcher, asha=parsed.asha, trackers=parsed.tracker)
    finish_sweep(root, report)
    failures = [result for result in root.read_json("results/trials.json") if result["error"]]
    if failures and not report.results["table"]:
        kind = {2: ConfigError, 3: HealthError}.get(failures[0]["exit_code"], SslRayError)
        raise kind(f"all {len(failures)} trials failed; the first: {failures[0]['error']}")
    return report
