"""One HTML file from records: no network, no scripts. Everything that comes from data is escaped by the template."""

from __future__ import annotations

import base64
import io
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from PIL import Image

from ssl_ray.artifacts import Checkpoint, Corpus, PseudoLabels, Scores, Selection
from ssl_ray.config import flatten
from ssl_ray.data.shards import read_encoded
from ssl_ray.report import figures
from ssl_ray.schema import NO_LABEL
from ssl_ray.tasks.classification import precision_by_threshold
from ssl_ray.views.decode import open_rgb

THRESHOLDS = np.round(np.arange(0.0, 1.0, 0.05), 2)
GRID = 12


def render(template: str, values: dict[str, Any]) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    text = files("ssl_ray.report").joinpath(template).read_text(encoding="utf-8")
    return environment.from_string(text).render(values)


def metric(scores: Scores, split: str, name: str = "top1") -> tuple[float, int] | None:
    """Value and number of images, or None where the split was not evaluated."""
    for row in scores.rows:
        if row["split"] == split and row["metric"] == name:
            return float(row["value"]), int(row["n"])
    return None


def score_rows(models: list[tuple[str, Checkpoint, Scores]]) -> list[dict[str, Any]]:
    """The score table: models in order. Marked is the student to use: the best on validation, or the last without one. Test
    images choose nothing."""
    first = metric(models[0][2], "test")
    assert first is not None
    rows: list[dict[str, Any]] = []
    for name, model, scores in models:
        test, val = metric(scores, "test"), metric(scores, "val")
        assert test is not None
        low, high = figures.wilson(*test)
        rows.append(
            {
                "name": name,
                "value": test[0],
                "val_value": val[0] if val else None,
                "top1": f"{test[0]:.2%}",
                "interval": f"{low:.1%} to {high:.1%}",
                "gain": "" if name == models[0][0] else f"{(test[0] - first[0]) * 100:+.2f} points",
                "val": f"{val[0]:.2%}" if val else "",
                "n": f"{test[1]:,}",
                "parameters": f"{model.results['parameters']:,}",
                "best": False,
            }
        )
    students = rows[1:]
    known = [row for row in students if row["val_value"] is not None]
    (max(known, key=lambda row: row["val_value"]) if known else students[-1])["best"] = True
    return rows


def pseudo_label_precision(images: Corpus, labels: PseudoLabels, teacher: Scores) -> tuple[str, list[dict[str, Any]]] | None:
    """Precision by threshold, against the hidden labels of the unlabeled images, or else on held-out labeled ones.

    Returns:
        What it was measured on, and the rows of `precision_by_threshold`.
    """
    table = labels.table(["shard", "row", "confidence", "label"])
    truth = _truth(images, table["shard"].to_numpy(), table["row"].to_numpy())
    known = truth != NO_LABEL
    if known.any():
        correct = table["label"].to_numpy() == truth
        return "the hidden labels of the unlabeled images", precision_by_threshold(
            table["confidence"].to_numpy()[known], correct[known], THRESHOLDS
        )
    for split, words in (("val", "the validation images"), ("test", "the test images (they chose nothing)")):
        if metric(teacher, split) is not None:
            seen = teacher.predictions(images.shards(split), ["confidence", "label"])
            correct = seen["label"].to_numpy() == images.column(split, "label")
            return words, precision_by_threshold(seen["confidence"].to_numpy(), correct, THRESHOLDS)
    return None


def _truth(images: Corpus, shards: np.ndarray, rows: np.ndarray) -> np.ndarray:
    truth = np.full(len(rows), NO_LABEL, np.int32)
    for shard in np.unique(shards):
        here = shards == shard
        truth[here] = images.rows(int(shard), ["truth"])["truth"].to_numpy()[rows[here]]
    return truth


def image_grids(images: Corpus, labels: PseudoLabels, selection: Selection) -> list[dict[str, Any]]:
    """The most and least confident images, with their labels. The least confident of all tell what the gate keeps out."""
    table = labels.table(["image_id", "shard", "row", "confidence", "label"])
    confidence = table["confidence"].to_numpy()
    order = np.argsort(-confidence, kind="stable")
    kept = confidence[order] >= selection.thresholds[table["label"].to_numpy()[order]]
    groups = [("Most confident", order[:GRID]), ("Least confident that was selected", order[kept][-GRID:][::-1]),
              ("Least confident of all", order[-GRID:][::-1])]  # fmt: skip
    return [{"title": title, "images": _tiles(images, table, index)} for title, index in groups if len(index)]


def _tiles(images: Corpus, table: Any, index: np.ndarray) -> list[dict[str, Any]]:
    classes = images.classes
    shards = {shard.shard: shard for shard in images.all_shards}
    tiles = []
    for row in table.take(index).to_pylist():
        data = read_encoded(images, shards[row["shard"]], np.array([row["row"]]))[0]
        truth = int(_truth(images, np.array([row["shard"]]), np.array([row["row"]]))[0])
        tiles.append(
            {
                "png": _thumbnail(data),
                "id": row["image_id"],
                "label": classes[row["label"]],
                "confidence": f"{row['confidence']:.3f}",
                "wrong": truth not in (NO_LABEL, row["label"]),
                "truth": classes[truth] if truth != NO_LABEL else "",
            }
        )
    return tiles


def _thumbnail(data: bytes) -> str:
    image = open_rgb(data)
    image.thumbnail((128, 128))
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def configuration(recipe: dict[str, Any]) -> list[tuple[str, str]]:
    return [(key, str(value)) for key, value in flatten(recipe).items()]
