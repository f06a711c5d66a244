"""How good a model is on images that it never saw."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ssl_ray.artifacts import Checkpoint, Corpus, LabelFile, Scores, list_label_files
from ssl_ray.config import Config
from ssl_ray.data.counts import task_of
from ssl_ray.data.predict import predict
from ssl_ray.errors import ConfigError
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

    Raises:
        ConfigError: the model says something else of an image than is known of these.
    """
    if task_of(model) != images.task:
        raise ConfigError(f"{model.path} is for {task_of(model)}, and the images for {images.task}; set images.task")
    splits = [split for split in config.splits if images.num_images(split)]
    result = predict(out, scale, images=images, model=model, splits=splits, budget=0.0, precision="float32")
    task = task_of(model)
    scores, by_class = [], {}
    for split in splits:
        held = {shard.shard for shard in images.shards(split)}
        files = [file for file in list_label_files(out / "labels") if file.shard in held]
        count = images.num_images(split)
        found = judged(task, images, split, out / "labels", files)
        by_class[split] = found.pop("classes", None)
        common = {"model": config.model, "seed": config.seed, "split": split, "n": count}
        scores += [{**common, "metric": metric, "value": value} for metric, value in found.items() if value is not None]
    head = HEADLINE[task]
    shown = "; ".join(
        f"{row['split']} {head[1]} {row['value']:.2%} (n={row['n']:,})" for row in scores if row["metric"] == head[0]
    )
    return {"summary": shown, "scores": scores, "by_class": by_class, **result}


HEADLINE = {"classification": ("top1", "top-1"), "detection": ("map", "AP"), "segmentation": ("miou", "mIoU")}
"""The metric that a task is judged by, and how it is called."""


def judged(task: str, images: Corpus, split: str, labels: Folder, files: list[LabelFile]) -> dict[str, Any]:
    """The metrics of a split from its predictions; `classes`, where it is there, by class."""
    num_classes = len(images.classes)
    if task == "classification":
        probs = np.concatenate([probs_of(labels.read_table(file.name, ["probs"]), num_classes) for file in files])
        return dict(metrics(images.column(split, "label"), probs))
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
                table = targets.read_table(held.name)
                true |= dict(zip(table["row"].to_pylist(), stored(task, table), strict=True))
        if not true:
            continue
        said = labels.read_table(file.name)
        for row, item in zip(said["row"].to_pylist(), stored(task, said), strict=True):
            yield opened(item), opened(true[row])
