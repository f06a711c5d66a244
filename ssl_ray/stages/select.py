"""Which pseudo-labels the student sees."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from ssl_ray.artifacts import Corpus, PseudoLabels, Scores, Selection
from ssl_ray.data.counts import COLUMNS, NOUNS, counted
from ssl_ray.data.fold import fold_rows
from ssl_ray.data.materialize import materialize
from ssl_ray.errors import ConfigError, SourceError
from ssl_ray.scale import Scale
from ssl_ray.selection import Decision, SelectionConfig, check_copies, decide
from ssl_ray.stage import stage
from ssl_ray.storage import Folder


@stage(Selection, resumable=True)
def select(
    config: SelectionConfig, out: Folder, scale: Scale, *, labels: PseudoLabels, images: Corpus | None = None
) -> dict[str, Any]:
    """Thresholds and copies from label columns only: seconds, and no second inference.

    Args:
        images: where the kept images are, with `materialize=True`.

    Raises:
        SourceError: a class without any pseudo-label over the least confidence.
    """
    classes, task = list(labels.results["classes"]), str(labels.results.get("task", "classification"))
    if task != "classification" and (config.balance or config.materialize):
        raise ConfigError(
            f"selection.balance and selection.materialize copy images by their class, and an image with {NOUNS[task]} has "
            "several; set both to false"
        )
    if task != "detection" and not config.keep_empty:
        raise ConfigError(f"selection.keep_empty=false is for boxes, and these labels are {NOUNS[task]}; leave it true")

    def count(table: pa.Table) -> np.ndarray:
        return counted(task, table, len(classes), config.bins)

    zero = np.zeros((len(classes), config.bins + 1), np.int64)
    counts = fold_rows(labels.labels, labels.files, COLUMNS[task], count, np.add, zero, labels.results.get("images"))
    if not counts.sum():
        raise SourceError(f"the labeler found no {NOUNS[task]} at all, and no threshold helps; train a better teacher")
    decision = decide(counts, config)
    surest = float(np.flatnonzero(counts.sum(axis=0)).max()) / config.bins
    empty = [name for name, kept in zip(classes, decision.kept, strict=True) if not kept]
    if empty and not config.allow_empty_classes:
        raise SourceError(
            f"no pseudo-label over {config.min_confidence:g} for {', '.join(empty[:10])} (the surest of all has {surest:.2f}); "
            "lower selection.min_confidence, train a better teacher, or allow it with --set selection.allow_empty_classes=true"
        )
    if not decision.kept.sum():
        raise SourceError(
            f"no pseudo-label at all over {config.min_confidence:g} (the surest has {surest:.2f}); lower "
            "selection.min_confidence, or train a better teacher"
        )
    shown = float((decision.kept * decision.copies).sum())
    check_copies(decision)
    often = f", shown {shown:,.0f} times an epoch" if task == "classification" else ""
    copied: dict[str, Any] = {}
    if config.materialize:
        if images is None:
            raise ConfigError("selection.materialize=true copies images: call select with images=...")
        copied = materialize(out, scale, images=images, labels=labels, decision=decision, config=config)
    return {
        "summary": (
            f"{int(decision.kept.sum()):,} of {int(counts.sum()):,} {NOUNS[task]} kept{often}; {_said(decision)}"
            + (f"; {copied['materialized']:,} images copied ({copied['bytes'] / 2**20:,.0f} MiB)" if copied else "")
        ),
        **copied,
        "task": task,
        "thresholds": decision.thresholds.tolist(),
        "copies": decision.copies.tolist(),
        "kept": decision.kept.tolist(),
        "before": counts.sum(axis=1).tolist(),
        "after": (decision.kept * decision.copies).tolist(),
        "histogram": counts.sum(axis=0).tolist(),
    }


def _said(decision: Decision) -> str:
    """The thresholds of the classes that keep something."""
    low, high = decision.thresholds.min(), decision.thresholds[decision.kept > 0].max()
    return f"threshold {low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"thresholds {low:.2f} to {high:.2f}"


def held_out_precision(images: Corpus, scores: Scores, selection: Selection) -> tuple[float | None, int]:
    """Precision of the labels that the selection would keep, measured on validation images, and how many those are.

    Test images are not asked: they choose nothing.
    """
    shards = images.shards("val")
    if not shards:
        return None, 0
    seen = scores.of_shards(shards, ["shard", "row", "confidence", "label"])
    label = seen["label"].to_numpy()
    kept = seen["confidence"].to_numpy() >= selection.thresholds[label]
    count = int(kept.sum())
    right = label == images.labels_of(seen)
    return (float(right[kept].mean()) if count else None), count
