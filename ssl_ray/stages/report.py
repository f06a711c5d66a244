"""What happened, in one HTML file."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

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
    """A model with its scores, and for a student what it learned from."""

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
            "versions": ", ".join(f"{name} {number}" for name, number in generations[-1].model.record.versions.items()),
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
    return [
        {"name": part.record.name, "summary": part.results["summary"], "seconds": f"{part.record.wall_s:.1f}"} for part in order
    ]
