"""Single-label classification: what a label is, as columns, targets and metrics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from ssl_ray.schema import classification_labels


def columns(image_id: pa.Array, shard: int, row: np.ndarray, probs: np.ndarray, top_k: int | None = None) -> pa.Table:
    """What the labeler said, as rows to store.

    Args:
        image_id: string [n].
        row: int32 [n], positions in the shard.
        probs: float32 [n, C], softmax at temperature 1.
        top_k: keep only the largest probabilities of an image.

    Returns:
        A table of `schema.classification_labels(C, top_k)`; probabilities are float32: temperatures above one raise values
        that float16 rounds to zero.
    """
    count, num_classes = probs.shape
    schema = classification_labels(num_classes, top_k)
    label = probs.argmax(axis=1).astype(np.int32)
    kept = probs
    data: dict[str, Any] = {
        "image_id": image_id,
        "shard": pa.array(np.full(count, shard, np.int32)),
        "row": pa.array(row.astype(np.int32)),
        "confidence": pa.array(probs[np.arange(count), label].astype(np.float32)),
        "label": pa.array(label),
    }
    if top_k is not None:
        best = np.argsort(-probs, axis=1, kind="stable")[:, : min(top_k, num_classes)]
        kept = np.take_along_axis(probs, best, axis=1)
        data["top_labels"] = pa.FixedSizeListArray.from_arrays(pa.array(best.astype(np.int32).reshape(-1)), best.shape[1])
    flat = pa.array(kept.astype(np.float32).reshape(-1))
    data["probs"] = pa.FixedSizeListArray.from_arrays(flat, kept.shape[1])
    return pa.table(data).select(schema.names).cast(schema)


def probs_of(table: pa.Table, num_classes: int) -> np.ndarray:
    """Return the probabilities of all classes, float32 [n, C]. Where only the largest are stored, the others share the rest."""
    stored = _fixed(table["probs"])
    if "top_labels" not in table.column_names:
        return stored if len(table) else np.empty((0, num_classes), np.float32)
    top = _fixed(table["top_labels"])
    rest = np.clip(1.0 - stored.sum(axis=1, keepdims=True), 0.0, 1.0)
    others = max(1, num_classes - stored.shape[1])
    dense = np.repeat(rest / others, num_classes, axis=1)
    np.put_along_axis(dense, top, stored, axis=1)
    return dense


def _fixed(column: pa.ChunkedArray) -> np.ndarray:
    """A column of lists of one length as an array [n, length]."""
    width = column.type.list_size
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return np.concatenate(parts).reshape(-1, width) if parts else np.empty((0, width))


def metrics(truth: np.ndarray, probs: np.ndarray) -> dict[str, float]:
    """Top-1 and, from six classes on, top-5 accuracy as fractions. truth int [n], probs [n, C]."""
    result = {"top1": float((probs.argmax(axis=1) == truth).mean())}
    if probs.shape[1] > 5:
        best = np.argpartition(-probs.astype(np.float32), 5, axis=1)[:, :5]
        result["top5"] = float((best == truth[:, None]).any(axis=1).mean())
    return result


def precision_by_threshold(
    confidence: np.ndarray, correct: np.ndarray, thresholds: np.ndarray
) -> list[dict[str, float | None]]:
    """For every threshold: images kept (n), their share, and the precision of their labels (None where none is kept)."""
    over = confidence[:, None] >= thresholds
    return precision_rows(thresholds, over.sum(axis=0), (over & correct[:, None]).sum(axis=0), len(confidence))


def precision_rows(
    thresholds: np.ndarray, kept: np.ndarray, right: np.ndarray, total: int | None = None
) -> list[dict[str, float | None]]:
    """The same from counts: images at or over each threshold, and those of them that are right; `total`: of how many."""
    total = int(kept[0]) if total is None else total
    return [
        {
            "threshold": float(threshold),
            "n": int(count),
            "share": int(count) / max(1, total),
            "precision": float(good / count) if count else None,
        }
        for threshold, count, good in zip(thresholds, kept, right, strict=True)
    ]
