"""How sure a labeler was of how much, by class: images, boxes or pixels, whatever its labels are."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from ssl_ray.artifacts import Checkpoint
from ssl_ray.selection import histogram
from ssl_ray.tasks import masks

COLUMNS = {"classification": ["confidence", "label"], "detection": ["labels", "scores"], "segmentation": ["mask", "certainty"]}
"""Columns of label files that `counted` reads, by task."""

NOUNS = {"classification": "images", "detection": "boxes", "segmentation": "pixels"}
"""What a label says something of, and a threshold chooses."""


def task_of(model: Checkpoint) -> str:
    """classification (encoders and clusters too), detection or segmentation."""
    return str(model.model.get("task", "classification"))


def counted(task: str, table: pa.Table, num_classes: int, bins: int) -> np.ndarray:
    """int64 [num_classes, bins + 1], as `selection.histogram`; partial results over files add up."""
    if task == "segmentation":
        return masks.certainty_histogram(masks.rows_of(table), num_classes, bins)
    if task == "detection":
        scores, labels = (table[name].combine_chunks().flatten() for name in ("scores", "labels"))
        return histogram(scores.to_numpy(zero_copy_only=False), labels.to_numpy(zero_copy_only=False), num_classes, bins)
    return histogram(table["confidence"].to_numpy(), table["label"].to_numpy(), num_classes, bins)
