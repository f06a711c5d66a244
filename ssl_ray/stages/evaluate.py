"""How good a model is on images that it never saw."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from ssl_ray.artifacts import Checkpoint, Corpus, Scores
from ssl_ray.config import Config
from ssl_ray.data.counts import task_of
from ssl_ray.data.predict import predict
from ssl_ray.errors import ConfigError, SourceError
from ssl_ray.label_files import LabelFile, list_label_files
from ssl_ray.scale import Scale
from ssl_ray.stage import stage
from ssl_ray.storage import Folder
from ssl_ray.tasks import boxes, masks
from ssl_ray.tasks.classification import metrics, probs_of
from ssl_ray.tasks.stored import opened, stored


class EvaluateConfig(Config):
    model: str  # the name in the score table
    seed: int = 0
    splits: tuple[str, ...] = ("val", "test")  # those that the corpus has


@stage(Scores, resumable=True)
def evaluate(config: EvaluateConfig, out: Folder, scale: Scale, *, images: Corpus, model: Checkpoint) -> dict[str, Any]:
    """Predictions for whole splits, and their metrics. No test image may be lost: the quarantine budget is zero.

    Files that their owner repaired since they were listed count as they are, and deleted ones are left out, with a word in the
    summary: neither costs what was trained meanwhile.

    Raises:
        SourceError: an image cannot be decoded, or all images of a split are gone.
        ConfigError: the model says something else of an image than is known of these.
    """
    if task_of(model) != images.task:
        raise ConfigError(f"{model.path} is for {task_of(model)}, and the images for {images.task}; set images.task")
    splits = [split for split in config.splits if images.num_images(split)]
    result = predict(out, scale, images=images, model=model, splits=splits, budget=0.0, precision="float32", as_found=True)
    task = task_of(model)
    scores, by_class = [], {}
    for split in splits:
        held = {shard.shard for shard in images.shards(split)}
        files = [file for file in list_label_files(out / "labels") if file.shard in held]
        count = sum((out / "labels").num_rows(file.name) for file in files)
        if not count:
            raise SourceError(f"all images of the split {split} were deleted since they were listed; run --rerun images")
        found = judged(task, images, split, out / "labels", files)
        by_class[split] = found.pop("classes", None)
        common = {"model": config.model, "seed": config.seed, "split": split, "n": count}
        scores += [{**common, "metric": metric, "value": value} for metric, value in found.items() if value is not None]
    head = HEADLINE[task]
    shown = "; ".join(
        f"{row['split']} {head[1]} {row['value']:.2%} (n={row['n']:,})" for row in scores if row["metric"] == head[0]
    )
    if result["taken_out"]:
        shown += f"; {result['taken_out']:,} images were taken out since they were listed, and are left out"
    return {"summary": shown, "scores": scores, "by_class": by_class, **result}


HEADLINE = {"classification": ("top1", "top-1"), "detection": ("map", "AP"), "segmentation": ("miou", "mIoU")}
"""The metric that a task is judged by, and how it is called."""


def judged(task: str, images: Corpus, split: str, labels: Folder, files: list[LabelFile]) -> dict[str, Any]:
    """The metrics of a split from its predictions; `classes`, where it is there, by class."""
    num_classes = len(images.classes)
    if task == "classification":
        tables = [file.read(labels, ["shard", "row", "probs"]) for file in files]
        probs = np.concatenate([probs_of(table, num_classes) for table in tables])
        return dict(metrics(images.labels_of(pa.concat_tables(tables)), probs))
    if task == "detection":
        return boxes.average_precision(pairs(task, images.targets, labels, files), num_classes)
    total = np.zeros((num_classes, num_classes), np.int64)
    for said, true in pairs(task, images.targets, labels, files):
        total += masks.confusion(said.classes, true.classes, num_classes)
    return masks.mean_iou(total)


def pairs(task: str, targets: Folder, labels: Folder, files: list[LabelFile]) -> Iterator[tuple[Any, Any]]:
    """What was said of every image of some label files, and what is true; images whose truth nobody knows are left out."""
    true: dict[int, Any] = {}
    shard = -1
    for file in files:
        if file.shard != shard:
            shard, true = file.shard, {}
            for held in (item for item in list_label_files(targets) if item.shard == shard):
                table = held.read(targets)
                true |= dict(zip(table["row"].to_pylist(), stored(task, table), strict=True))
        if not true:
            continue
        said = file.read(labels)
        for row, item in zip(said["row"].to_pylist(), stored(task, said), strict=True):
            yield opened(item), opened(true[row])
