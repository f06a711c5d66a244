"""What a trial tells, whatever it computes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ssl_ray.errors import HealthError
from ssl_ray.grids import Trial
from ssl_ray.pipelines.noisy_student import base
from ssl_ray.recipes.sweep import SweepRecipe
from ssl_ray.scale import inline
from ssl_ray.tune.sweep import Sweep, known_points, run_trial, told
from ssl_ray.tune.trials import OBJECTIVE, run_trials

PATH = "teacher.optim.lr"


def failing(root: Path, error: Exception, **more: Any) -> Sweep:
    def noisy_student(run: Any, recipe: Any) -> None:
        raise error

    module = SimpleNamespace(base=base, noisy_student=noisy_student)
    return Sweep(SweepRecipe(job="noisy_student", recipe="tiny", **more), [], str(root), inline(), lambda job: module)


@pytest.mark.parametrize("error", [HealthError("no class"), ValueError("a bug")])
def test_a_searcher_hears_of_a_failure(error: Exception, tmp_path: Path) -> None:
    sweep = failing(tmp_path, error, search={PATH: "uniform(0.1,0.2)"})
    heard: list[Mapping[str, Any]] = []
    run_trial(sweep, {PATH: 0.15}, heard.append)
    assert heard[-1][OBJECTIVE] == -math.inf
    assert str(error) in (sweep.result(Trial({PATH: 0.15}, 0)) or {})["error"]
    assert known_points(sweep) == []  # nor is it told of it when it goes on


def test_a_grid_has_nobody_to_tell(tmp_path: Path) -> None:
    heard: list[Mapping[str, Any]] = []
    run_trial(failing(tmp_path, HealthError("no class"), grid={PATH: (0.1,)}), {"point": {PATH: 0.1}, "seed": 0}, heard.append)
    assert heard == []


def test_names_that_trackers_take() -> None:
    rows = [
        {"model": "random-S1-20%", "split": split, "metric": "top1", "value": value}
        for split, value in (("val", 0.5), ("test", 0.6))
    ]
    assert told(rows) == {"val/top1/random-S1-20_": 0.5, "test/top1/random-S1-20_": 0.6, OBJECTIVE: 0.5}


def test_a_trial_is_called_what_it_is(ray_session: None, tmp_path: Path) -> None:
    """Trackers show Tune's name of a trial and its configuration: the point, and no number alone."""
    import json

    def work(config: Mapping[str, Any], report: Any) -> None:
        report({"judged": 1, OBJECTIVE: config["point"]["lr"]})

    points = [{"point": {"lr": lr}, "seed": 0} for lr in (0.5, 0.25)]
    names: list[str] = []

    def name_of(config: Mapping[str, Any]) -> str:
        return Trial(config["point"], config["seed"]).name

    run_trials(
        work, points, inline(), storage=str(tmp_path), name="trials", name_of=name_of, trackers=["tensorboard"],
        done=lambda point, death: names.append(name_of(point)),
    )  # fmt: skip
    assert sorted(names) == ["lr=0.25,seed=0", "lr=0.5,seed=0"]
    tunes = next(tmp_path.glob("trials/experiment_state-*.json")).read_text()
    assert all(name in tunes for name in names)  # what Tune calls them, and tells trackers
    told = [json.loads(path.read_text()) for path in tmp_path.glob("trials/*/params.json")]
    assert sorted(config["point"]["point"]["lr"] for config in told) == [0.25, 0.5]
