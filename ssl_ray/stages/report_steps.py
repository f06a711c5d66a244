"""What pretraining, fine-tuning and distillation brought, in one HTML file."""

from __future__ import annotations

from typing import Any

import numpy as np

from ssl_ray.artifacts import Artifact, Checkpoint, Corpus, Report, Scores
from ssl_ray.report import figures, html
from ssl_ray.scale import Scale
from ssl_ray.stage import stage
from ssl_ray.stages.report import Generation, ReportConfig, stage_rows
from ssl_ray.storage import Folder


@stage(Report)
def report_steps(
    config: ReportConfig,
    out: Folder,
    scale: Scale,
    *,
    images: Corpus,
    encoder: Checkpoint,
    steps: list[Generation],
    probed: Scores | None,
) -> dict[str, Any]:
    """`report.html`: scores of all steps against the first, the course of pretraining, and what the teacher said.

    Returns:
        The score rows; the table, with the model to use marked (best on validation, or the last one; test chooses nothing).
    """
    rows = html.score_rows([(step.name, step.model, step.scores) for step in steps])
    best = next(row for row in rows if row["best"])
    gain = (best["value"] - rows[0]["value"]) * 100
    measured = [html.metric(step.scores, "test") for step in steps]
    labels = next(step.model.results["labels"] for step in steps)
    history = encoder.history
    taught = [_section(images, step) for step in steps if step.labels is not None]
    page = html.render(
        "steps.html",
        {
            "title": config.title,
            "verdict": f"With {labels:,} labels and {images.results['images']['unlabeled']:,} images without, top-1 on test "
            f"went from {rows[0]['top1']} ({rows[0]['name']}) to {best['top1']} ({best['name']}): {gain:+.2f} points.",
            "images": images.results["summary"],
            "scores": rows,
            "first": rows[0]["name"],
            "has_val": images.results["images"]["val"] > 0,
            "accuracy": figures.accuracy(
                [step.name for step in steps], [m[0] for m in measured if m], [m[1] for m in measured if m]
            ),
            "course": figures.course(history, COURSE),
            "health": encoder.results["summary"],
            "known": f"{images.results['images']['train']:,}",
            "probes": probed.results["table"] if probed else [],
            "taught": taught,
            "stages": stage_rows(_all(images, encoder, steps, probed)),
            "configuration": html.configuration(config.recipe),
            "versions": html.versions(steps[-1].model),
        },
    )
    out.write_bytes("report.html", page.encode())
    scores = [row for step in steps for row in step.scores.rows] + (probed.rows if probed else [])
    kept = ("name", "top1", "gain", "n", "interval", "best")
    return {
        "summary": f"{best['name']} is {gain:+.2f} points over {rows[0]['name']}",
        "scores": scores,
        "table": [{key: row[key] for key in kept} for row in rows],
        "best": next(step.model.record.name for step in steps if step.name == best["name"]),
    }


COURSE = {
    "loss": "loss",
    "contrastive_accuracy": "contrastive accuracy",
    "puzzle_accuracy": "puzzles solved",
    "knn_val": "neighbours right on validation",
    "feature_std": "spread of the features (0: collapsed)",
    "effective_rank": "effective rank of the features",
}
"""What is drawn of a pretraining, and in which words."""


def _section(images: Corpus, step: Generation) -> dict[str, Any]:
    assert step.labels is not None
    found = step.labels.results
    none = np.empty(0)
    return {
        "student": step.name,
        "text": found["summary"],
        "histogram": figures.confidence_histogram(found["confidence_histogram"], none),
        "counts": figures.class_counts(found["classes"], found["per_class"], None),
        "grids": html.image_grids(images, step.labels),
    }


def _all(images: Corpus, encoder: Checkpoint, steps: list[Generation], probed: Scores | None) -> list[Artifact]:
    order: list[Artifact] = [images, encoder, *([probed] if probed else [])]
    for step in steps:
        order += [part for part in (step.labels, step.model, step.scores) if part is not None]
    return order
