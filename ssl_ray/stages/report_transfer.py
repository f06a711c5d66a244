"""What clusters carried into a small net, arm by arm, in one HTML file."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ssl_ray.artifacts import Artifact, Checkpoint, Corpus, PseudoLabels, Report, Scores
from ssl_ray.data.fold import fold
from ssl_ray.label_files import LabelFile
from ssl_ray.report import figures, html
from ssl_ray.scale import Scale
from ssl_ray.stage import stage
from ssl_ray.stages.report import ReportConfig, stage_rows
from ssl_ray.stages.report_steps import COURSE
from ssl_ray.storage import Folder

SHOWN, EACH = 12, 10
"""Clusters that are shown of an arm, and images of each."""


class Arm(NamedTuple):
    """A row of the comparison: what was judged, what it learned from, and its scores by protocol."""

    name: str
    model: Checkpoint | None  # None: random weights
    clusters: Checkpoint | None
    labels: PseudoLabels | None
    labelled: str  # which images the labels are of
    scores: list[tuple[str, Scores]]


@stage(Report, derived=True)
def report_transfer(
    config: ReportConfig,
    out: Folder,
    scale: Scale,
    *,
    images: dict[str, Corpus],
    arms: list[Arm],
    teachers: list[Checkpoint],
) -> dict[str, Any]:
    """`report.html`: every arm by protocol and layer, the clusters with images of them, the course of the pretexts.

    Returns:
        Rows of all arms, the table, and the arm to use: best on validation where there are such images (else the last that
        learned clusters); test images choose nothing.
    """
    rows = [row for arm in arms for row in rows_of(arm)]
    columns = list(dict.fromkeys(row["column"] for row in rows if row["split"] == "test"))
    best = chosen(rows, arms)
    table = [
        {
            "arm": arm.name,
            "cells": [shown(rows, arm.name, column) for column in columns],
            "clusters": f"{len(arm.clusters.model['classes']):,}" if arm.clusters is not None else "–",
            "nmi": f"{arm.labels.results['nmi']:.3f}" if arm.labels is not None and "nmi" in arm.labels.results else "–",
            "purity": f"{arm.labels.results['purity']:.1%}" if arm.labels is not None and "nmi" in arm.labels.results else "–",
            "val": f"{validated(rows, arm.name):.2%}" if validated(rows, arm.name) >= 0 else "",
            "best": arm is best,
        }
        for arm in arms
    ]
    verdict = verdict_of(rows, arms, best) if rows else unjudged(best)
    layers = {}
    for arm in arms:
        points = [(column, value_of(rows, arm.name, column)) for column in columns if column.startswith("conv")]
        known = [(column, value) for column, value in points if value is not None]
        if known:
            layers[arm.name] = known
    page = html.render(
        "transfer.html",
        {
            "title": config.title,
            "verdict": verdict,
            "images": "; ".join(corpus.results["summary"] for corpus in images.values()),
            "columns": columns,
            "table": table,
            "has_val": any(row["val"] for row in table),
            "layers": figures.by_layer(layers) if layers else "",
            "sections": [section_of(arm, images[arm.labelled]) for arm in distinct(arms)],
            "teachers": [pretext_of(teacher) for teacher in teachers if "hog" not in teacher.model],
            "stages": stage_rows(parts_of(images, arms, teachers)),
            "configuration": html.configuration(config.recipe),
            "versions": html.versions(best.model if best.model is not None else next(iter(images.values()))),
        },
    )
    out.write_bytes("report.html", page.encode())
    assert best.model is not None
    return {
        "summary": verdict,
        "scores": [{key: row[key] for key in ("model", "seed", "split", "metric", "value", "n")} for row in rows],
        "rows": rows,
        "columns": columns,
        "table": table,
        "best": best.model.record.name,
    }


def rows_of(arm: Arm) -> list[dict[str, Any]]:
    """All top-1 of an arm, by column of the table: a layer's linear probe, or a protocol."""
    found = []
    for protocol, scores in arm.scores:
        for row in scores.rows:
            if row["metric"] == "top1":
                column = row.get("layer", protocol)
                found.append({**row, "arm": arm.name, "column": column, "model": f"{arm.name}, {column}"})
    return found


def chosen(rows: list[dict[str, Any]], arms: list[Arm]) -> Arm:
    """The arm to use: best on validation; without such images, the last that learned clusters."""
    learned = [arm for arm in arms if arm.model is not None]
    return max(reversed(learned), key=lambda arm: (validated(rows, arm.name), arm.clusters is not None))


def value_of(rows: list[dict[str, Any]], arm: str, column: str, split: str = "test") -> float | None:
    found = [row["value"] for row in rows if (row["arm"], row["column"], row["split"]) == (arm, column, split)]
    return float(found[0]) if found else None


def shown(rows: list[dict[str, Any]], arm: str, column: str) -> str:
    value = value_of(rows, arm, column)
    return "–" if value is None else f"{value:.2%}"


def validated(rows: list[dict[str, Any]], arm: str) -> float:
    """What an arm is chosen by: its mean over all protocols on validation images; -1 without such images."""
    values = [row["value"] for row in rows if row["arm"] == arm and row["split"] == "val"]
    return float(np.mean(values)) if values else -1.0


def verdict_of(rows: list[dict[str, Any]], arms: list[Arm], best: Arm) -> str:
    """The arm to use, against the first that passes weights on as they are (or, without such an arm, the first one)."""
    others = [arm for arm in arms if arm.model is not None and arm is not best]
    if not others:
        return f"{best.name} is the only arm."
    against = next((arm for arm in others if arm.clusters is None), others[0])
    told = []
    for column in dict.fromkeys(row["column"] for row in rows):
        a, b = value_of(rows, best.name, column), value_of(rows, against.name, column)
        if a is not None and b is not None:
            told.append(f"{column} {a:.2%} against {b:.2%} ({(a - b) * 100:+.2f})")
    by = "best mean of all columns on validation" if validated(rows, best.name) >= 0 else "the last arm with clusters"
    count = max(row["n"] for row in rows)
    return f"{best.name} ({by}) against {against.name}, top-1 on {count:,} test images, one seed: {'; '.join(told)}."


def unjudged(best: Arm) -> str:
    clusters = f"{len(best.clusters.model['classes']):,} clusters" if best.clusters is not None else "no clusters"
    return f"{best.name}: a net that learned {clusters}; there are no labels to judge it by."


def distinct(arms: list[Arm]) -> list[Arm]:
    """Arms with labels, those that share them once."""
    seen: dict[str, Arm] = {}
    for arm in arms:
        if arm.labels is not None:
            seen.setdefault(arm.labels.path, arm)
    return list(seen.values())


def section_of(arm: Arm, images: Corpus) -> dict[str, Any]:
    assert arm.clusters is not None
    assert arm.labels is not None
    found, labels = arm.clusters.results, arm.labels.results
    history = [entry for entry in found["history"] if entry["restart"] == found["restart"]]
    agreed = (
        f" Against {labels['known']:,} labels that nobody used: normalised mutual information {labels['nmi']:.3f}, purity "
        f"{labels['purity']:.1%}."
        if "nmi" in labels
        else ""
    )
    return {
        "arm": arm.name,
        "text": (
            f"{arm.clusters.record.name}: {found['summary']}. {arm.labels.record.name} (the images that the net learned from): "
            f"{labels['summary']}.{agreed}"
        ),
        "course": figures.course(history, {"inertia": "inertia", "moved": "share of points that moved"}, "iteration"),
        "sizes": figures.class_counts(labels["classes"], labels["per_class"], None),
        "rows": cluster_rows(images, arm.labels),
    }


def cluster_rows(images: Corpus, labels: PseudoLabels) -> list[dict[str, Any]]:
    """Some clusters, from the largest to the smallest that is not empty, each with its surest images."""
    counts = np.asarray(labels.results["per_class"])
    order = np.argsort(-counts, kind="stable")[: int((counts > 0).sum())]
    picked = order[np.unique(np.linspace(0, len(order) - 1, SHOWN).astype(int))] if len(order) else order
    columns = ["image_id", "shard", "row", "confidence", "label"]

    def nearest(_: LabelFile, table: pa.Table) -> list[pa.Table]:
        return [_most_sure(table.filter(pa.array(table["label"].to_numpy() == cluster))) for cluster in picked]

    def join(first: list[pa.Table], second: list[pa.Table]) -> list[pa.Table]:
        return [_most_sure(pa.concat_tables([a, b])) for a, b in zip(first, second, strict=True)]

    nothing = [labels.read(labels.files[0], columns).slice(0, 0)] * len(picked)
    found = fold(labels, columns, nearest, join, nothing)
    return [
        {"cluster": int(cluster), "count": f"{int(counts[cluster]):,}", "images": html.thumbnails(images, table)}
        for cluster, table in zip(picked, found, strict=True)
    ]


def _most_sure(table: pa.Table) -> pa.Table:
    return table.take(pa.array(np.argsort(-table["confidence"].to_numpy(), kind="stable")[:EACH]))


def pretext_of(teacher: Checkpoint) -> dict[str, Any]:
    history = teacher.history
    name = teacher.record.name.removeprefix("teachers/")
    return {"name": name, "text": teacher.results["summary"], "course": figures.course(history, COURSE)}


def parts_of(images: dict[str, Corpus], arms: list[Arm], teachers: list[Checkpoint]) -> list[Artifact]:
    order: list[Artifact] = [*images.values(), *teachers]
    for arm in arms:
        order += [part for part in (arm.clusters, arm.labels, arm.model) if part is not None]
        order += [scores for _, scores in arm.scores]
    return list({part.path: part for part in order}.values())
