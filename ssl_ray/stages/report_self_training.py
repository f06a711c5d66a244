"""What self-training and pre-training are worth, arm by arm, in one HTML file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ssl_ray.artifacts import Artifact, Checkpoint, Corpus, PseudoLabels, Report, Scores, Selection
from ssl_ray.data.counts import NOUNS
from ssl_ray.data.shards import Unreadable, as_found, decoding_of, manifest_rows, read_rows
from ssl_ray.label_files import list_label_files
from ssl_ray.report import figures, html
from ssl_ray.report.scenes import drawn
from ssl_ray.scale import Scale
from ssl_ray.stage import stage
from ssl_ray.stages.evaluate import HEADLINE, pairs
from ssl_ray.stages.report import ReportConfig, stage_rows
from ssl_ray.storage import Folder
from ssl_ray.tasks import boxes, masks
from ssl_ray.tasks.stored import opened, stored
from ssl_ray.views.decode import open_rgb

METRICS = {
    "classification": {"top1": "top-1", "top5": "top-5"},
    "detection": {
        "map": "AP",
        "map50": "AP50",
        "map75": "AP75",
        "map_small": "small",
        "map_medium": "medium",
        "map_large": "large",
    },
    "segmentation": {"miou": "mIoU", "pixel_accuracy": "pixels"},
}
"""Columns of the table, by task."""

SHOWN = 6
"""Images that are drawn."""


class Cell(NamedTuple):
    """An arm: the model that is judged, and, with self-training, what it learned from."""

    name: str
    teacher: str  # arms of one teacher are compared
    model: Checkpoint
    scores: Scores
    before: Scores | None = None  # the teacher's; None without self-training
    labels: PseudoLabels | None = None
    selection: Selection | None = None


@stage(Report, derived=True)
def report_self_training(
    config: ReportConfig, out: Folder, scale: Scale, *, images: Corpus, cells: list[Cell]
) -> dict[str, Any]:
    """`report.html`: every arm with what self-training moved, metrics by size and class, the pseudo-labels' precision by
    threshold, and images with true, teacher's and student's answers side by side.

    Returns:
        Score rows, the table, and the arm that is shown and offered: best on validation where there are such images, else the
        last with self-training, which nothing chose; test images choose nothing.
    """
    task = images.task
    columns = {
        key: words for key, words in METRICS[task].items() if any(html.metric(cell.scores, "test", key) for cell in cells)
    }
    best = chosen(cells, task)
    has_val = headline(best.scores, task, "val") is not None
    table = [row_of(cell, columns, task, has_val and cell is best) for cell in cells]
    learned = [cell for cell in cells if cell.labels is not None]
    curves = [(cell.name, quality(cell, images, task)) for cell in learned]
    curves = [(name, rows) for name, rows in curves if any(row["n"] for row in rows)]  # nothing over any threshold: no figure
    verdict = verdict_of(cells, task, images)
    over = float(shown_over(best, images).min())
    page = html.render(
        "self_training.html",
        {
            "title": config.title,
            "verdict": verdict,
            "images": images.results["summary"],
            "columns": list(columns.values()),
            "table": table,
            "has_val": has_val,
            "best": best.name,
            "classes": by_class(best, images) if best.before is not None else "",
            "precision": [figures.precision_recall(curves, NOUNS[task])] if curves else [],
            "source": "the hidden labels of the unlabeled images"
            if images.truth.names(".parquet")
            else "the validation images",
            "pictures": pictures(images, best, task),
            "shown_over": f"{over:.2f}" if task == "detection" else "",
            "has_teacher": best.before is not None,
            "labels": [
                (cell.name, cell.labels.results["summary"], known(cell.selection) + worth(cell, dict(curves)))
                for cell in learned
                if cell.labels
            ],
            "stages": stage_rows(parts_of(images, cells)),
            "configuration": html.configuration(config.recipe),
            "versions": html.versions(best.model),
        },
    )
    out.write_bytes("report.html", page.encode())
    judged = {id(scores): scores for cell in cells for scores in (cell.before, cell.scores) if scores is not None}
    return {
        "summary": verdict,
        "task": task,
        "over": over,
        "scores": list({str(row): row for scores in judged.values() for row in scores.rows}.values()),
        "columns": list(columns.values()),
        "arms": {
            cell.name: {key: found[0] for key in columns if (found := html.metric(cell.scores, "test", key))} for cell in cells
        },
        "table": table,
        "precision": [{"arm": name, "rows": rows} for name, rows in curves],
        "best": best.model.record.name,
        "chosen_by": "val" if has_val else None,
    }


def known(selection: Selection | None) -> str:
    return "" if selection is None else str(selection.results["summary"])


def worth(cell: Cell, curves: dict[str, list[dict[str, Any]]]) -> str:
    """How good the pseudo-labels are that the student sees, in words; nothing where it cannot be told."""
    if cell.selection is None or cell.name not in curves:
        return ""
    least = float(cell.selection.thresholds.min())
    row = min(curves[cell.name], key=lambda row: abs(row["threshold"] - least))
    if row["precision"] is None:
        return ""
    right, found = row["precision"], row["recall"]
    return f"; over {row['threshold']:.2f} {right:.0%} of them are right, and {found:.0%} of what is there is found"


def headline(scores: Scores, task: str, split: str = "test") -> float | None:
    found = html.metric(scores, split, HEADLINE[task][0])
    return None if found is None else found[0]


def chosen(cells: list[Cell], task: str) -> Cell:
    """The arm to use."""
    return max(reversed(cells), key=lambda cell: (headline(cell.scores, task, "val") or -1.0, cell.before is not None))


def row_of(cell: Cell, columns: dict[str, str], task: str, best: bool) -> dict[str, Any]:
    values = {key: html.metric(cell.scores, "test", key) for key in columns}
    now, then = headline(cell.scores, task), None if cell.before is None else headline(cell.before, task)
    val = headline(cell.scores, task, "val")
    return {
        "arm": cell.name,
        "cells": ["–" if found is None else f"{found[0] * 100:.1f}" for found in values.values()],
        "gain": "" if now is None or then is None else f"{(now - then) * 100:+.1f}",
        "val": "" if val is None else f"{val * 100:.1f}",
        "best": best,
    }


def verdict_of(cells: list[Cell], task: str, images: Corpus) -> str:
    """What self-training moved, in a sentence."""
    words, count = HEADLINE[task][1], images.results["images"]
    moved = []
    for cell in cells:
        if cell.before is not None:
            then, now = headline(cell.before, task), headline(cell.scores, task)
            if then is not None and now is not None:
                moved.append(f"{cell.name} {then * 100:.1f} to {now * 100:.1f} ({(now - then) * 100:+.1f})")
    if not moved:
        shown = [(cell.name, headline(cell.scores, task)) for cell in cells]
        return f"{words} on {count['test']:,} test images: " + "; ".join(
            f"{n} {v * 100:.1f}" for n, v in shown if v is not None
        )
    fewer = any(cell.model.record.config.get("subset") for cell in cells)  # an arm's name says how many of them
    labeled = f"the labels of each arm (of {count['train']:,} images)" if fewer else f"{count['train']:,} labeled ones"
    return (
        f"What {count['unlabeled']:,} unlabeled images moved beside {labeled}, {words} on "
        f"{count['test']:,} test images, one seed: {'; '.join(moved)}."
    )


def by_class(cell: Cell, images: Corpus) -> str:
    """The headline metric by class, before and after."""
    assert cell.before is not None
    then, now = (scores.results["by_class"].get("test") for scores in (cell.before, cell.scores))
    if not then or not now:
        return ""
    there = [index for index, value in enumerate(now) if value is not None and then[index] is not None]
    lines = {name: [values[index] for index in there] for name, values in (("teacher", then), ("student", now))}
    return figures.by_class([images.classes[index] for index in there], lines)


THRESHOLDS = np.round(np.arange(0.05, 1.0, 0.05), 2)


def quality(cell: Cell, images: Corpus, task: str) -> list[dict[str, Any]]:
    """Precision and recall of pseudo-labels by threshold: of boxes at an IoU of 0.5, of pixels that are no ground in the truth
    or the label. Measured on hidden labels of the unlabeled images, or else on validation images."""
    assert cell.labels is not None
    if task == "classification":
        return []
    if images.truth.names(".parquet"):
        found: Iterator[tuple[Any, Any]] = pairs(task, images.truth, cell.labels.labels, cell.labels.files)
    elif images.num_images("val") and cell.before is not None:
        folder, held = cell.before.folder / "labels", {shard.shard for shard in images.shards("val")}
        files = [file for file in list_label_files(folder) if file.shard in held]
        found = pairs(task, images.targets, folder, files)
    else:
        return []
    said, right, total = np.zeros(len(THRESHOLDS)), np.zeros(len(THRESHOLDS)), 0
    for item, true in found:
        if task == "detection":
            good, counts = boxes.matches(item, true)
            over = item.scores[counts, None] >= THRESHOLDS
            good = good[counts]
            total += int((~true.ignore).sum())
        else:
            counts = (true.classes != masks.IGNORE) & ((true.classes != 0) | (item.classes != 0))
            good = (item.classes == true.classes)[counts]
            over = (item.certainty[counts] / 255.0)[:, None] >= THRESHOLDS
            total += int(((true.classes != 0) & (true.classes != masks.IGNORE)).sum())
        said += over.sum(axis=0)
        right += (over & good[:, None]).sum(axis=0)
    return [
        {"threshold": float(t), "precision": float(r / s) if s else None, "recall": float(r / max(1, total)), "n": int(s)}
        for t, r, s in zip(THRESHOLDS, right, said, strict=True)
    ]


def pictures(images: Corpus, cell: Cell, task: str) -> list[dict[str, Any]]:
    """Some test images: what is true, what the teacher says, what the student says, over the scores that a student learns."""
    if task == "classification":
        return []
    thresholds = shown_over(cell, images)
    shard = images.shards("test")[0]
    rows = np.linspace(0, shard.num_rows - 1, min(SHOWN, shard.num_rows)).round().astype(int)
    encoded = read_rows(manifest_rows(images, shard, rows), shard.format, shard.image_column)

    def answers(folder: Folder) -> dict[int, Any]:
        found: dict[int, Any] = {}
        for file in list_label_files(folder):
            if file.shard == shard.shard and any(file.start <= row < file.stop for row in rows):
                table = file.read(folder)
                found |= dict(zip(table["row"].to_pylist(), stored(task, table), strict=True))
        return found

    columns = [answers(images.targets)]
    columns += [answers(scores.folder / "labels") for scores in (cell.before, cell.scores) if scores is not None]
    ids = images.rows(shard.shard, ["image_id"])["image_id"]
    shown = []
    for row, item in zip(rows.tolist(), encoded, strict=True):
        data = as_found(item)
        if isinstance(data, Unreadable) or any(row not in column for column in columns):
            continue  # taken out since it was listed
        image = open_rgb(data, decoding_of(images))
        drawings = [drawn(image, sure(opened(column[row]), thresholds), images.classes) for column in columns]
        shown.append({"id": ids[row].as_py(), "drawings": drawings})
    return shown


def shown_over(cell: Cell, images: Corpus) -> np.ndarray:
    """Scores from which boxes are drawn, float64 [C]: those that a student learns from, or 0.5 where there is none."""
    return np.full(len(images.classes), 0.5) if cell.selection is None else cell.selection.thresholds


def sure(item: Any, thresholds: np.ndarray) -> Any:
    """Boxes from some scores on; masks as they are."""
    if isinstance(item, masks.Mask):
        return item
    return item.taken(item.scores >= thresholds[item.labels])


def parts_of(images: Corpus, cells: list[Cell]) -> list[Artifact]:
    """All stages that an arm stands on, each once."""
    order: list[Artifact] = [images]
    for cell in cells:
        order += [part for part in (cell.before, cell.labels, cell.selection, cell.model, cell.scores) if part is not None]
    return list({part.record.name: part for part in order}.values())
