"""One HTML file from records: no network, no scripts. Everything that comes from data is escaped by the template."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pyarrow as pa
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from ssl_ray.artifacts import Artifact, Checkpoint, Corpus, PseudoLabels, Scores, Selection
from ssl_ray.config import flatten
from ssl_ray.data.fold import fold
from ssl_ray.data.shards import decoding_of, read_encoded
from ssl_ray.label_files import LabelFile
from ssl_ray.report import figures
from ssl_ray.schema import NO_LABEL
from ssl_ray.tasks.classification import precision_by_threshold, precision_rows
from ssl_ray.views.channels import Decoding
from ssl_ray.views.decode import open_rgb

THRESHOLDS = np.round(np.arange(0.0, 1.0, 0.05), 2)
GRID = 12


def render(template: str, values: dict[str, Any]) -> str:
    environment = Environment(
        loader=PackageLoader("ssl_ray.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(template).render(values)


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

    def count(file: LabelFile, table: pa.Table) -> np.ndarray:
        truth = images.rows(file.shard, ["truth"])["truth"].to_numpy()[table["row"].to_numpy()]
        known = truth != NO_LABEL
        confidence, right = table["confidence"].to_numpy()[known], (table["label"].to_numpy() == truth)[known]
        over = confidence[:, None] >= THRESHOLDS
        return np.stack([over.sum(axis=0), (over & right[:, None]).sum(axis=0)]).astype(np.int64)

    zero = np.zeros((2, len(THRESHOLDS)), np.int64)
    kept, right = fold(labels, ["row", "confidence", "label"], count, np.add, zero)
    if kept[0]:
        return "the hidden labels of the unlabeled images", precision_rows(THRESHOLDS, kept, right)
    for split, words in (("val", "the validation images"), ("test", "the test images (they chose nothing)")):
        if metric(teacher, split) is not None:
            seen = teacher.of_shards(images.shards(split), ["shard", "row", "confidence", "label"])
            correct = seen["label"].to_numpy() == images.labels_of(seen)
            return words, precision_by_threshold(seen["confidence"].to_numpy(), correct, THRESHOLDS)
    return None


def image_grids(images: Corpus, labels: PseudoLabels, selection: Selection | None = None) -> list[dict[str, Any]]:
    """The most and least confident images, with their labels. The least confident of all tell what the gate keeps out."""
    columns = ["image_id", "shard", "row", "confidence", "label"]
    groups = {"Most confident": -1, "Least confident that was selected": 0, "Least confident of all": 1}
    if selection is None:
        del groups["Least confident that was selected"]

    def extremes(_: LabelFile, table: pa.Table) -> list[pa.Table]:
        return [_cut(table, side, selection) for side in groups.values()]

    def join(first: list[pa.Table], second: list[pa.Table]) -> list[pa.Table]:
        pairs = zip(first, second, groups.values(), strict=True)
        return [_cut(pa.concat_tables([a, b]), side, selection) for a, b, side in pairs]

    nothing = [labels.read(labels.files[0], columns).slice(0, 0)] * len(groups)
    found = fold(labels, columns, extremes, join, nothing)
    return [
        {"title": title, "images": _tiles(images, list(labels.results["classes"]), table)}
        for title, table in zip(groups, found, strict=True)
        if len(table)
    ]


def _cut(table: pa.Table, side: int, selection: Selection | None) -> pa.Table:
    """The GRID most (-1) or least (1) confident rows; 0: the least confident over the thresholds."""
    confidence = table["confidence"].to_numpy()
    if side == 0:
        assert selection is not None
        table = table.filter(pa.array(confidence >= selection.thresholds[table["label"].to_numpy()]))
        confidence = table["confidence"].to_numpy()
    order = np.argsort(confidence if side >= 0 else -confidence, kind="stable")
    return table.take(pa.array(order[:GRID]))


def _tiles(images: Corpus, classes: list[str], table: pa.Table) -> list[dict[str, Any]]:
    shards = images.all_shards
    tiles = []
    for row in table.to_pylist():
        place = np.array([row["row"]])
        data = read_encoded(images, shards[row["shard"]], place)[0]
        truth = int(images.rows(row["shard"], ["truth"])["truth"].to_numpy()[row["row"]])
        tiles.append(
            {
                "png": _thumbnail(data, decoding_of(images)),
                "id": row["image_id"],
                "label": classes[row["label"]] if row["label"] != NO_LABEL else "nothing",
                "confidence": f"{row['confidence']:.3f}",
                "wrong": truth not in (NO_LABEL, row["label"]),
                "truth": classes[truth] if truth != NO_LABEL else "",
            }
        )
    return tiles


def thumbnails(images: Corpus, table: pa.Table) -> list[str]:
    """Small PNGs, as base64, of the images in a table with the columns shard and row."""
    shards = images.all_shards
    return [
        _thumbnail(read_encoded(images, shards[row["shard"]], np.array([row["row"]]))[0], decoding_of(images))
        for row in table.select(["shard", "row"]).to_pylist()
    ]


def _thumbnail(data: bytes, decoding: Decoding) -> str:
    image = open_rgb(data, decoding)
    image.thumbnail((128, 128))
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def configuration(recipe: dict[str, Any]) -> list[tuple[str, str]]:
    return [(key, str(value)) for key, value in flatten(recipe).items()]


def versions(part: Artifact) -> str:
    """What a stage was computed with."""
    return ", ".join(f"{name} {number}" for name, number in part.record.versions.items())
