"""Single-label classification: what a label is, as columns, targets and metrics."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from ssl_ray.schema import classification_labels


def columns(image_id: pa.Array, shard: int, row: np.ndarray, probs: np.ndarray) -> pa.Table:
    """What the labeler said, as rows to store.

    Args:
        image_id: string [n].
        row: int32 [n], positions in the shard.
        probs: float32 [n, C], softmax at temperature 1.

    Returns:
        A table of `schema.classification_labels(C)`; `confidence` is the float32 probability, `probs` are float16.
    """
    count, num_classes = probs.shape
    label = probs.argmax(axis=1).astype(np.int32)
    flat = pa.array(probs.astype(np.float16).reshape(-1), pa.float16())
    return pa.table(
        {
            "image_id": image_id,
            "shard": pa.array(np.full(count, shard, np.int32)),
            "row": pa.array(row.astype(np.int32)),
            "confidence": pa.array(probs[np.arange(count), label].astype(np.float32)),
            "label": pa.array(label),
            "probs": pa.FixedSizeListArray.from_arrays(flat, num_classes),
        },
        schema=classification_labels(num_classes),
    )


def probs_of(table: pa.Table, num_classes: int) -> np.ndarray:
    """The `probs` column as float16 [n, C]."""
    column = table["probs"].combine_chunks()
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunks]
    return np.concatenate(parts).reshape(-1, num_classes) if parts else np.empty((0, num_classes), np.float16)


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
    rows: list[dict[str, float | None]] = []
    for threshold in thresholds:
        kept = confidence >= threshold
        count = int(kept.sum())
        precision = float(correct[kept].mean()) if count else None
        rows.append({"threshold": float(threshold), "n": count, "share": count / max(1, len(kept)), "precision": precision})
    return rows
