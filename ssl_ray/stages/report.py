"""What happened, in one HTML file."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field

from ssl_ray.artifacts import Artifact, Checkpoint, Corpus, PseudoLabels, Report, Scores, Selection
from ssl_ray.config import Config
from ssl_ray.report import figures, html
from ssl_ray.scale import Scale
from ssl_ray.stage import stage
from ssl_ray.storage import Folder


class ReportConfig(Config):
    title: str = "Noisy Student"
    recipe: dict[str, Any] = Field(default_factory=dict)


class Generation(NamedTuple):
    """A model with its scores, and for a student of stored labels what it learned from."""

    name: str
    model: Checkpoint
    scores: Scores
    labels: PseudoLabels | None = None
    selection: Selection | None = None


@stage(Report)
def report(config: ReportConfig, out: Folder, scale: Scale, *, images: Corpus, generations: list[Generation]) -> dict[str, Any]:
    """`report.html` from the records and label columns of all stages."""
    rows = html.score_rows([(step.name, step.model, step.scores) for step in generations])
    best = next(row for row in rows if row["best"])
    measured = [html.metric(step.scores, "test") for step in generations]
    gain = (best["value"] - rows[0]["value"]) * 100
    counts = images.results["images"]
    sections, curves, source = [], [], ""
    for before, step in pairwise(generations):
        assert step.labels is not None
        assert step.selection is not None
        sections.append(_section(images, before.name, step))
        found = html.pseudo_label_precision(images, step.labels, before.scores)
        if found is not None:
            source = found[0]
            curves.append((f"labels of {before.name}", found[1]))
    page = html.render(
        "report.html",
        {
            "title": config.title,
            "verdict": f"{counts['unlabeled']:,} unlabeled images took top-1 on test from {rows[0]['top1']} (teacher, "
            f"{counts['train']:,} labels) to {best['top1']} ({best['name']}): {gain:+.2f} points.",
            "images": images.results["summary"],
            "scores": rows,
            "has_val": counts["val"] > 0,
            "accuracy": figures.accuracy(
                [step.name for step in generations], [m[0] for m in measured if m], [m[1] for m in measured if m]
            ),
            "precision": figures.precision(curves) if curves else "",
            "precision_source": source,
            "generations": sections,
            "stages": _stages(images, generations),
            "configuration": html.configuration(config.recipe),
            "versions": html.versions(generations[-1].model),
        },
    )
    out.write_bytes("report.html", page.encode())
    scores = [row for step in generations for row in step.scores.rows]
    kept = ("name", "top1", "gain", "n", "interval", "best")
    return {
        "summary": f"{best['name']} is {gain:+.2f} points over the teacher",
        "scores": scores,
        "table": [{key: row[key] for key in kept} for row in rows],
        "best": next(step.model.record.name for step in generations if step.name == best["name"]),
        "precision": [{"labels": name, "rows": curve} for name, curve in curves],
    }


def _section(images: Corpus, teacher: str, step: Generation) -> dict[str, Any]:
    assert step.labels is not None
    assert step.selection is not None
    labels, chosen = step.labels.results, step.selection.results
    quarantined = labels["quarantined"]
    return {
        "teacher": teacher,
        "student": step.name,
        "text": f"{labels['summary']}. {chosen['summary']}."
        + (f" {quarantined} images could not be decoded and lie in quarantine." if quarantined else ""),
        "histogram": figures.confidence_histogram(chosen["histogram"], step.selection.thresholds),
        "counts": figures.class_counts(labels["classes"], chosen["before"], chosen["after"]),
        "grids": html.image_grids(images, step.labels, step.selection),
    }


def _stages(images: Corpus, generations: list[Generation]) -> list[dict[str, str]]:
    order: list[Artifact] = [images]
    for step in generations:
        order += [part for part in (step.labels, step.selection, step.model, step.scores) if part is not None]
    return stage_rows(order)


def stage_rows(parts: list[Artifact]) -> list[dict[str, str]]:
    """What the stages decided, and how long they took."""
    return [
        {"name": part.record.name, "summary": part.results["summary"], "seconds": f"{part.record.wall_s:.1f}"} for part in parts
    ]


@stage(Report)
def report_labels(config: ReportConfig, out: Folder, scale: Scale, *, images: Corpus, labels: PseudoLabels) -> dict[str, Any]:
    """`report.html` of a labelling: how sure the labeler was, of what, and what it could not read."""
    found, health = labels.results, labels.results["health"]
    classes = found["classes"]
    missing = health["classes_without_labels"]
    facts = [
        ("images labeled", f"{found['images']:,}"),
        ("mean confidence", f"{found['mean_confidence']:.3f}"),
        ("largest class", f"{health['largest_class']} ({health['largest_share']:.1%} of the images)"),
        (
            "classes that got no image",
            ", ".join(missing[:5]) + (f" and {len(missing) - 5:,} more" if len(missing) > 5 else "") or "none",
        ),
        ("unreadable images", f"{found['quarantined']:,}"),
        ("images per second", f"{found['images_per_s']:,.0f} (the last run, its start included)"),
    ]
    page = html.render(
        "labels.html",
        {
            "title": config.title,
            "verdict": f"{found['images']:,} images labeled with {len(classes):,} classes.",
            "images": images.results["summary"],
            "histogram": figures.confidence_histogram(found["confidence_histogram"], np.empty(0)),
            "counts": figures.class_counts(classes, found["per_class"], None),
            "health": facts,
            "quarantine": [(reason, f"{count:,}") for reason, count in found["quarantine_reasons"].items()],
            "grids": html.image_grids(images, labels),
            "stages": stage_rows([images, labels]),
            "configuration": html.configuration(config.recipe),
            "versions": html.versions(labels),
        },
    )
    out.write_bytes("report.html", page.encode())
    return {"summary": f"{found['images']:,} labels", "facts": facts}
