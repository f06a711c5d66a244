"""Which pseudo-labels a student sees: histograms in, thresholds and expected copies out. Numbers to numbers.

Implements: data filtering and balancing of Noisy Student (Xie et al., CVPR 2020), in the exact form of the
authors' released `filter_unlabel.py`: a histogram of the top-1 probability per predicted class, in bins of 0.01; from
the most confident bin downwards until a class has enough images or the least confidence is reached.

Differs from the paper: the text duplicates images of small classes "at random"; the released code (and this one) keeps
every selected image `target / count` times in expectation, the fraction by one draw per image. The draw here is
addressed by (seed, shard, row), so that the same set comes out on every machine; the released code's is unseeded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from ssl_ray.config import Config
from ssl_ray.machine import check_memory
from ssl_ray.randomness import generator

NOTHING_KEPT = 2.0
"""A threshold that no confidence reaches."""


class SelectionConfig(Config):
    min_confidence: Annotated[float, Field(ge=0, le=1)] = 0.3  # 0.3 on ImageNet (code: filter_unlabel.sh)
    balance: bool = True  # off: every image over min_confidence once (`use_all` in the released code)
    per_class: Annotated[int, Field(ge=1, le=10**12)] | None = None  # images a class; None: all images / classes
    upsample: bool = True  # off: at most one copy of an image
    max_copies: Annotated[float, Field(gt=0)] | None = None  # ours: the paper knows no cap
    allow_empty_classes: bool = False
    top_share: Annotated[float, Field(gt=0, le=1)] | None = None  # of a class's labels over min_confidence, the surest
    keep_empty: bool = True  # boxes: images without a box over its threshold stay, as background
    bins: Annotated[int, Field(ge=2, le=1_000_000)] = 100
    materialize: bool = False  # copy the kept images into Parquet beside the selection, for slow or remote sources
    seed: int = 0

    @model_validator(mode="after")
    def _one_way(self) -> SelectionConfig:
        if self.top_share is not None and self.balance:
            raise ValueError("top_share and balance exclude each other; set balance=false")
        return self


def histogram(confidence: np.ndarray, label: np.ndarray, num_classes: int, bins: int) -> np.ndarray:
    """Count images by predicted class and confidence.

    Args:
        confidence: float32 [n] in [0, 1], the probability of `label`.
        label: int32 [n], the predicted class.

    Returns:
        int64 [num_classes, bins + 1]; bin b holds confidences in [b / bins, (b + 1) / bins), the last one exactly 1.
        Partial results over shards add up.
    """
    index = confidence_bin(confidence, bins)
    index += label.astype(np.int64) * (bins + 1)
    return np.bincount(index, minlength=num_classes * (bins + 1)).reshape(num_classes, bins + 1)


def confidence_bin(confidence: np.ndarray, bins: int) -> np.ndarray:
    """int64 [n]. In float64, so that a threshold compares with an image's bin exactly as it was counted."""
    scaled = confidence.astype(np.float64)
    scaled *= bins
    return np.clip(scaled, 0, bins, out=scaled).astype(np.int64)  # which cuts off what stands behind the point


@dataclass(frozen=True)
class Decision:
    """thresholds float64 [C], copies float64 [C] (expected, per kept image), kept int64 [C] (images over threshold)."""

    thresholds: np.ndarray
    copies: np.ndarray
    kept: np.ndarray


def decide(counts: np.ndarray, config: SelectionConfig) -> Decision:
    """Thresholds and copies from the histogram (`histogram`, summed over all shards).

    A class's threshold is the highest bin edge at which the images above it reach the target (or `top_share` of all), but never
    below `min_confidence`; where they do not reach it, they are copied (`target / count`), where they pass it, thinned.
    """
    num_classes, bins = counts.shape[0], counts.shape[1] - 1
    # The lowest bin that lies wholly at or over the least confidence; 1e-9 forgives 0.3 * 100 = 30.000000000000004.
    lowest = int(np.ceil(config.min_confidence * bins - 1e-9))
    above = counts[:, ::-1].cumsum(axis=1)[:, ::-1]  # above[c, b]: images of class c in bin b and over
    target = config.per_class or max(1, round(int(counts.sum()) / num_classes))
    thresholds = np.full(num_classes, NOTHING_KEPT)
    copies, kept = np.zeros(num_classes), np.zeros(num_classes, np.int64)
    for c in range(num_classes):
        wanted = target if config.top_share is None else config.top_share * above[c, lowest]
        chooses = config.balance or config.top_share is not None
        enough = np.flatnonzero(above[c] >= wanted) if chooses else np.empty(0, np.int64)
        edge = max(int(enough[-1]) if len(enough) else 0, lowest)
        kept[c] = above[c, edge]
        if not kept[c]:
            continue
        thresholds[c] = edge / bins
        copies[c] = target / kept[c] if config.balance else 1.0
        if not config.upsample:
            copies[c] = min(copies[c], 1.0)
        if config.max_copies is not None:
            copies[c] = min(copies[c], config.max_copies)
    return Decision(thresholds, copies, kept)


ROW_BYTES = 12
"""A row of a student's epoch in memory: shard, row and class."""


def check_copies(decision: Decision) -> None:
    """Raise ResourceError if an epoch of so many copies is larger than the memory."""
    rows = float((decision.kept * decision.copies).sum())
    remedy = "lower selection.per_class, or set selection.max_copies"
    check_memory(f"{rows:,.0f} pseudo-labels per epoch", ROW_BYTES * rows, remedy)


def copies_of_rows(
    confidence: np.ndarray,
    label: np.ndarray,
    row: np.ndarray,
    *,
    shard: int,
    thresholds: np.ndarray,
    copies: np.ndarray,
    bins: int,
    seed: int,
) -> np.ndarray:
    """How often each row of a shard is shown in an epoch: the whole part always, the fraction by an addressed draw.

    Args:
        confidence, label: float32 and int32 [n].
        row: int32 [n], positions in the shard: the address of the draw, so that a shard may be read in any pieces.

    Returns:
        int64 [n].
    """
    if not len(row):
        return np.empty(0, np.int64)
    edge = np.round(thresholds * bins).astype(np.int64)
    expected = np.where(confidence_bin(confidence, bins) >= edge[label], copies[label], 0.0)
    draw = generator(seed, "copies", shard).random(int(row.max()) + 1)[row]
    whole = np.floor(expected)
    return (whole + (draw < expected - whole)).astype(np.int64)


def sharpen(probs: np.ndarray, temperature: float) -> np.ndarray:
    """Softmax at another temperature, from stored probabilities: p^(1/T), normalised. float32 [n, C] -> float32 [n, C].

    T < 1 sharpens, T = 1 returns the input normalised. The released code does the same (`teacher_softmax_temp`).
    """
    powered = np.power(probs.astype(np.float32), 1.0 / temperature)
    return powered / powered.sum(axis=1, keepdims=True)
