"""What pretraining from another set brought, step by step, in one HTML file."""

from __future__ import annotations

import statistics
from typing import Any, NamedTuple

from ssl_ray.artifacts import Artifact, Checkpoint, Corpus, Report, Scores
from ssl_ray.report import figures, html
from ssl_ray.scale import Scale
from ssl_ray.stage import stage
from ssl_ray.stages.probe import validated
from ssl_ray.stages.report import ReportConfig, stage_rows
from ssl_ray.stages.report_steps import COURSE
from ssl_ray.storage import Folder


class Look(NamedTuple):
    """An encoder after some steps on a target, and what probes say of it; none where the target has no labels."""

    target: str
    strategy: str
    variant: str  # "" for the settings as they are
    last: bool  # of its phase
    model: Checkpoint
    probed: Scores | None


class Tuned(NamedTuple):
    """Fine-tunings of one encoder on so many labels, one for every rate and schedule of the grid."""

    target: str
    strategy: str
    labels: int | None  # None: all
    scores: list[Scores]


class HPTReportConfig(ReportConfig):
    begins: str = ""  # the checkpoint that chains begin with, if it is not of this job


@stage(Report, derived=True)
def report_hpt(
    config: HPTReportConfig,
    out: Folder,
    scale: Scale,
    *,
    images: dict[str, Corpus],
    looks: list[Look],
    tuned: list[Tuned],
    phases: list[Checkpoint],
    best: dict[str, Checkpoint],
) -> dict[str, Any]:
    """`report.html`: every strategy by target, accuracy against steps, few labels, robustness.

    Returns:
        Rows of all looks and fine-tunings, the speed-ups, and for every target the checkpoint that validation likes best.
    """
    rows = [row_of(look) for look in looks if look.probed is not None]
    grid = [best_of(part) for part in tuned]
    sections, verdicts, speedups = [], [], []
    for target in dict.fromkeys(look.target for look in looks):
        own = [row for row in rows if row["target"] == target]
        plain = [row for row in own if not row["variant"]]
        if not plain:
            last = next(look for look in reversed(looks) if look.target == target and look.last)
            count = sum(images[target].results["images"].values())
            verdicts.append(
                f"{target}: {steps_on_target(last):,} steps of {last.strategy} on {count:,} images; there are no labels to "
                "judge by."
            )
            sections.append({"target": target, "images": images[target].results["summary"], "course": course_of(last.model)})
            continue
        leader = max(plain, key=lambda row: row["val"])
        found = fewer_steps(plain)
        if found is not None:
            speedups.append({"target": target, **found})
        verdicts.append(verdict(target, leader, found))
        sections.append(
            {
                "target": target,
                "images": images[target].results["summary"],
                "metric": leader["metric"],
                "table": table_of(plain, [part for part in grid if part["target"] == target], leader),
                "labels": [words_of(count) for count in dict.fromkeys(part["labels"] for part in grid)],
                "figure": _figure(plain),
                "variants": variants_of(own),
                "course": [],
            }
        )
    page = html.render(
        "hpt.html",
        {
            "title": config.title,
            "verdict": " ".join(verdicts),
            "images": "; ".join(f"{name}: {corpus.results['summary']}" for name, corpus in images.items()),
            "sections": sections,
            "strategies": [look.strategy for look in looks],
            "begins": config.begins,
            "stages": stage_rows([*_parts(images, looks, tuned, phases), *best.values()]),
            "configuration": html.configuration(config.recipe),
            "versions": html.versions(phases[-1] if phases else looks[-1].model),
        },
    )
    out.write_bytes("report.html", page.encode())
    scores = [row for look in looks if look.probed is not None for row in _named(look.probed, _place(look))]
    scores += [row for part in tuned for found in part.scores for row in found.rows]
    return {
        "summary": verdicts[0],
        "verdicts": verdicts,
        "rows": rows,
        "grid": grid,
        "speedups": speedups,
        "scores": scores,
        "use": {target: model.path for target, model in best.items()},
        "tables": {part["target"]: part["table"] for part in sections if "table" in part},
    }


def row_of(look: Look) -> dict[str, Any]:
    """A look as numbers: its linear probe on test and on validation, and nearest neighbours on test."""
    assert look.probed is not None
    linear = [row for row in look.probed.rows if row["model"] == "linear"]
    knn = [row["value"] for row in look.probed.rows if row["model"] == "knn"]
    return {
        "target": look.target,
        "strategy": look.strategy,
        "variant": look.variant,
        "last": look.last,
        "step": steps_on_target(look),
        "metric": linear[0]["metric"],
        "linear": statistics.mean(row["value"] for row in linear),
        "val": validated(look.probed),
        "knn": knn[0] if knn else None,
    }


def steps_on_target(look: Look) -> int:
    """Of a phase's end, its length; of a snapshot, its step; the base as it is has made none."""
    found = look.model.results
    return 0 if look.strategy == "base-raw" else int(found.get("steps", found.get("step", 0)))


def best_of(part: Tuned) -> dict[str, Any]:
    """The cell of a grid that validation likes best, with its score on test."""

    def value(scores: Scores, split: str) -> float:
        return next((row["value"] for row in scores.rows if row["split"] == split and row["metric"] == "top1"), -1.0)

    best = max(part.scores, key=lambda scores: value(scores, "val"))
    return {
        "target": part.target,
        "strategy": part.strategy,
        "labels": part.labels,
        "top1": value(best, "test"),
        "settings": best.record.config["model"],
        "cells": len(part.scores),
    }


def fewer_steps(rows: list[dict[str, Any]], slow: str = "target", quick: str = "hpt") -> dict[str, Any] | None:
    """After how many steps `quick` is first as good as `slow` at its best, both judged on validation.

    Returns:
        Both steps, both scores on test, and the ratio of the steps; `quick_step` and `times` are None where it never is as
        good. None where one of them was not run.
    """
    slow_rows, quick_rows = ([row for row in rows if row["strategy"] == name] for name in (slow, quick))
    if not slow_rows or not quick_rows:
        return None
    goal = max(slow_rows, key=lambda row: (row["val"], -row["step"]))  # of equals, the earliest
    there = [row for row in sorted(quick_rows, key=lambda row: row["step"]) if row["val"] >= goal["val"]]
    first = there[0] if there else None
    return {
        "slow": slow,
        "quick": quick,
        "slow_step": goal["step"],
        "slow_linear": goal["linear"],
        "quick_step": first["step"] if first else None,
        "quick_linear": first["linear"] if first else max(quick_rows, key=lambda row: row["val"])["linear"],
        "times": goal["step"] / first["step"] if first else None,
    }


def verdict(target: str, best: dict[str, Any], found: dict[str, Any] | None) -> str:
    words = {"top1": "top-1", "auroc": "macro AUROC"}[best["metric"]]
    text = f"{target}: {best['linear']:.2%} {words} by a linear probe, after {best['strategy']}."
    if found is None:
        return text
    if found["times"] is None:
        return (
            f"{text} In the steps it had, hpt did not come to what target pretraining reached at its best "
            f"({found['slow_linear']:.2%} after {found['slow_step']:,} steps)."
        )
    return (
        f"{text} hpt was as good as target pretraining at its best ({found['slow_linear']:.2%} after {found['slow_step']:,} "
        f"steps) after {found['quick_step']:,} steps: {found['times']:.3g} times fewer."
    )


def words_of(labels: int | None) -> str:
    return "all labels" if labels is None else f"{labels:,} labels"


def table_of(rows: list[dict[str, Any]], grid: list[dict[str, Any]], best: dict[str, Any]) -> list[dict[str, Any]]:
    """One line a strategy: its best step by validation, what probes say there, and the fine-tunings."""
    table = []
    for strategy in dict.fromkeys(row["strategy"] for row in rows):
        found = max((row for row in rows if row["strategy"] == strategy), key=lambda row: row["val"])
        cells = {words_of(part["labels"]): f"{part['top1']:.2%}" for part in grid if part["strategy"] == strategy}
        table.append(
            {
                "strategy": strategy,
                "step": f"{found['step']:,}" if found["step"] else "–",
                "linear": f"{found['linear']:.2%}",
                "knn": f"{found['knn']:.2%}" if found["knn"] is not None else "–",
                "tuned": cells,
                "best": found is best,
            }
        )
    return table


def variants_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How far each change of the settings takes a strategy from its own last step without the change, in points."""
    plain = {row["strategy"]: row for row in rows if not row["variant"] and row["last"]}
    return [
        {
            "variant": row["variant"],
            "strategy": row["strategy"],
            "linear": f"{row['linear']:.2%}",
            "change": f"{100 * (row['linear'] - plain[row['strategy']]['linear']):+.2f}" if row["strategy"] in plain else "–",
        }
        for row in rows
        if row["variant"]
    ]


def course_of(model: Checkpoint) -> list[str]:
    """Figures of a pretraining's history."""
    history = model.history
    return figures.course(history, {**COURSE, "loss": "contrastive loss"})


def _figure(rows: list[dict[str, Any]]) -> str:
    courses: dict[str, list[tuple[float, float]]] = {}
    levels: dict[str, float] = {}
    for strategy in dict.fromkeys(row["strategy"] for row in rows):
        own = sorted((row for row in rows if row["strategy"] == strategy), key=lambda row: row["step"])
        if len(own) > 1:
            courses[strategy] = [(row["step"], row["linear"]) for row in own]
        else:
            levels[strategy] = own[0]["linear"]
    return figures.against_steps(courses, levels, "linear probe on test (%)")


def _place(look: Look) -> str:
    variant = f"--{look.variant}" if look.variant else ""
    return f"{look.target}/{look.strategy}{variant}/{'end' if look.last else steps_on_target(look)}"


def _named(scores: Scores, name: str) -> list[dict[str, Any]]:
    return [{**row, "model": f"{name} {row['model']}"} for row in scores.rows]


def _parts(images: dict[str, Corpus], looks: list[Look], tuned: list[Tuned], phases: list[Checkpoint]) -> list[Artifact]:
    parts: list[Artifact] = [*images.values(), *phases]
    parts += [look.probed for look in looks if look.probed is not None]
    return parts + [scores for part in tuned for scores in part.scores]
