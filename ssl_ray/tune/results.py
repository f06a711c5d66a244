"""The results of a sweep as one Parquet file and one report."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from ssl_ray.artifacts import Report
from ssl_ray.config import fingerprint
from ssl_ray.errors import ConfigError
from ssl_ray.grids import shown
from ssl_ray.recipes.sweep import LABEL_WORDS, WORDS, SweepRecipe
from ssl_ray.scale import Scale
from ssl_ray.stage import Run
from ssl_ray.stages.report_sweep import SweepReportConfig, report_sweep
from ssl_ray.storage import Folder


def reported(path: str, recipe: SweepRecipe, scale: Scale, results: list[dict[str, Any]]) -> Report:
    """`results/results.parquet`, one row a score, and the report on it."""
    root = Folder(path)
    if not results:
        raise ConfigError("no trial was run; is --trials smaller than what is known already?")
    roles = [roles_of(result, WORDS[recipe.job].role) for result in results]
    kinds: dict[str, set[type]] = {}
    for result in results:
        for axis, value in result["point"].items():
            kinds.setdefault(axis, set()).add(float if type(value) is int else type(value))
    rows = [
        {
            "trial": result["name"], "seed": result["seed"], "point": json.dumps(result["point"]),
            **{f"axis_{axis}": as_column(value, kinds[axis]) for axis, value in result["point"].items()},
            "labels": result["labels"], "model": score["model"], "role": role[score["model"]], "split": score["split"],
            "metric": score["metric"], "value": float(score["value"]), "n": int(score["n"]),
            "seconds": float(result.get("model_s", {}).get(score["model"], result["seconds"])),
            "stopped": bool(result["stopped"]),
            "judged_by": result["stages"].get(f"scores/{score['model']}", {}).get("fingerprint", ""),
        }
        for result, role in zip(results, roles, strict=True) for score in result["scores"] if not result["error"]
    ]  # fmt: skip
    empty = {"trial": "", "seed": 0, "point": "{}", "labels": None, "model": "", "role": "", "split": "", "metric": "",
             "value": 0.0, "n": 0, "seconds": 0.0, "stopped": False, "judged_by": ""}  # fmt: skip
    table = pa.Table.from_pylist(rows) if rows else pa.Table.from_pylist([empty]).slice(0, 0)
    place = root / "results"
    place.write_table("results.parquet", table)
    place.write_json("trials.json", results)
    different = {
        (name, part["fingerprint"]): part["wall_s"]
        for found in results
        for name, part in found["stages"].items()
        if name != "report"  # every trial has its own; nobody pays for it
    }
    settings = SweepReportConfig(
        title=f"Sweep of {recipe.job}",
        results=place.path,
        digest=fingerprint(results),
        sweep=recipe.model_dump(mode="json"),
        against=against(recipe),
        baseline=recipe.baseline or WORDS[recipe.job].baseline or None,
        metric=recipe.metric,
        stages={
            "asked": sum(len(found["stages"].keys() - {"report"}) for found in results),
            "different": len(different),
            "work_s": round(sum(different.values()), 1),
            "apart_s": round(sum(found["seconds"] for found in results), 1),
        },
    )
    report: Report = Run(path, scale, echo=lambda line: None)("report", report_sweep, settings)
    return report


def against(recipe: SweepRecipe) -> str | None:
    """The axis that curves are drawn over."""
    if recipe.against is not None:
        return recipe.against
    if any(word in recipe.grid for word in LABEL_WORDS):
        return "labels"
    numbers = [axis for axis, values in recipe.grid.items()
               if len(values) > 1 and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)]  # fmt: skip
    return next(iter([*numbers, *recipe.search]), None)


def roles_of(result: dict[str, Any], role: Callable[[str], str]) -> dict[str, str]:
    """What each model of a trial is called in tables: its role; where several arms have one of the same role, their names
    without what the sweep varies."""
    models = list(dict.fromkeys(score["model"] for score in result["scores"]))
    found = {model: role(model) for model in models}
    varied = {shown(value) for value in result["point"].values()}
    for model in models:
        if sum(role(other) == role(model) for other in models) > 1:
            kept = [part for part in model.split("-") if part not in varied and not re.fullmatch(r"[\d.]+%", part)]
            found[model] = "-".join(kept) or model
    return found if len(set(found.values())) == len(models) else {model: model for model in models}


def as_column(value: Any, kinds: set[type]) -> Any:
    """A value of an axis: numbers, words and truths as they are, where all of the axis are of one kind; else as text."""
    if len(kinds - {type(None)}) > 1 or not isinstance(value, bool | int | float | str | None):
        return shown(value)
    return float(value) if kinds - {type(None)} == {float} and value is not None else value
