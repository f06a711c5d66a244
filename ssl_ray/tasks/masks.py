"""Semantic segmentation: what a label is, as columns; mean intersection over union from one confusion matrix."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from ssl_ray.schema import MASK_LABELS, NO_LABEL

IGNORE = 255
"""A pixel that counts neither in a loss nor in a metric."""


@dataclass(frozen=True)
class Mask:
    """The classes of the pixels of one image."""

    classes: np.ndarray  # uint8 [H, W]; IGNORE where there is none
    certainty: np.ndarray | None = None  # uint8 [H, W]: 255 times the probability of the class; None where a person drew it
    finite: bool = True  # whether the net gave numbers

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, in pixels."""
        return int(self.classes.shape[1]), int(self.classes.shape[0])


def to_png(pixels: np.ndarray) -> bytes:
    """uint8 [H, W] -> the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def from_png(data: bytes, most: int | None = None) -> np.ndarray:
    """The bytes of a PNG file, grey or with a palette -> uint8 [H, W]: its values, not its colors.

    Args:
        most: pixels that are allowed; None: as many as Pillow opens.

    Raises:
        ValueError: it is no image of one channel, or too large.
    """
    try:
        image = Image.open(io.BytesIO(data))
        if image.mode not in ("L", "P"):
            raise ValueError(f"has {len(image.getbands())} channels ({image.mode}), and a mask has one, of 8 bits")
        if most is not None and image.width * image.height > most:
            raise ValueError(f"has {image.width} x {image.height} pixels, more than the {most:,} allowed")
        return np.asarray(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot be decoded: {error}") from None


def columns(image_id: pa.Array, shard: int, row: np.ndarray, found: Sequence[Mask]) -> pa.Table:
    """The masks of some images, as rows to store: a table of `schema.MASK_LABELS`."""
    facts = [_summary(item) for item in found]
    data: dict[str, Any] = {
        "image_id": image_id,
        "shard": pa.array(np.full(len(found), shard, np.int32)),
        "row": pa.array(np.asarray(row, np.int32)),
        "width": pa.array([item.size[0] for item in found], pa.int32()),
        "height": pa.array([item.size[1] for item in found], pa.int32()),
        "confidence": pa.array([confidence for confidence, _ in facts], pa.float32()),
        "label": pa.array([label for _, label in facts], pa.int32()),
        "mask": pa.array([to_png(item.classes) for item in found], pa.binary()),
        "certainty": pa.array([b"" if item.certainty is None else to_png(item.certainty) for item in found], pa.binary()),
    }
    return pa.table(data).select(MASK_LABELS.names).cast(MASK_LABELS)


def _summary(mask: Mask) -> tuple[float, int]:
    """The mean certainty of the pixels, and the most frequent class."""
    known = mask.classes[mask.classes != IGNORE]
    if not known.size:
        return 0.0, NO_LABEL
    sure = 1.0 if mask.certainty is None else float(mask.certainty.mean()) / 255
    return sure, int(np.bincount(known.reshape(-1)).argmax())


@dataclass(frozen=True)
class PackedMask:
    """A mask as it is stored."""

    mask: bytes  # PNG
    certainty: bytes  # PNG; empty where a person drew the mask

    def opened(self) -> Mask:
        return Mask(from_png(self.mask), from_png(self.certainty) if self.certainty else None)


def packed(table: pa.Table) -> list[PackedMask]:
    """The images of a table that `columns` made, in its order."""
    pairs = zip(table["mask"].to_pylist(), table["certainty"].to_pylist(), strict=True)
    return [PackedMask(mask, certainty) for mask, certainty in pairs]


def rows_of(table: pa.Table) -> Iterator[Mask]:
    """The same, each opened when its turn comes."""
    return (item.opened() for item in packed(table))


def over_thresholds(mask: Mask, thresholds: np.ndarray) -> np.ndarray:
    """uint8 [H, W]: classes of the pixels that are at least as sure as the threshold of their class, float [C]; else IGNORE."""
    if mask.certainty is None:
        return mask.classes
    known = np.append(thresholds, [2.0] * (256 - len(thresholds)))  # no class beyond the last
    # The same nudge as in `certainty_histogram`: a threshold keeps exactly the pixels that were counted over it.
    sure = mask.certainty / 255.0 + 1e-9 >= known[mask.classes]
    return np.where(sure, mask.classes, IGNORE).astype(np.uint8)


def certainty_histogram(masks: Iterable[Mask], num_classes: int, bins: int) -> np.ndarray:
    """Pixels by class and certainty, int64 [num_classes, bins + 1], as `selection.histogram` counts images."""
    total = np.zeros((num_classes, bins + 1), np.int64)
    for mask in masks:
        assert mask.certainty is not None
        index = np.minimum((mask.certainty.astype(np.float64) / 255.0 + 1e-9) * bins, bins).astype(np.int64)
        known = mask.classes < num_classes
        flat = mask.classes[known].astype(np.int64) * (bins + 1) + index[known]
        total += np.bincount(flat, minlength=total.size).reshape(total.shape)
    return total


def confusion(said: np.ndarray, true: np.ndarray, num_classes: int) -> np.ndarray:
    """int64 [C, C]: pixels by true class (row) and said class; pixels that are IGNORE in the truth are left out.

    Args:
        said, true: uint8 [H, W].
    """
    known = true != IGNORE
    index = true[known].astype(np.int64) * num_classes + said[known].clip(max=num_classes - 1)
    return np.bincount(index, minlength=num_classes**2).reshape(num_classes, num_classes)


def mean_iou(table: np.ndarray) -> dict[str, Any]:
    """From a confusion matrix int64 [C, C] over all images: `miou` over the classes that are there or were said,
    `pixel_accuracy`, and `classes`, the IoU of each (None where it is neither)."""
    right = np.diag(table).astype(np.float64)
    union = table.sum(axis=0) + table.sum(axis=1) - right
    there = union > 0
    iou = np.divide(right, union, out=np.zeros_like(right), where=there)
    return {
        "miou": float(iou[there].mean()) if there.any() else 0.0,
        "pixel_accuracy": float(right.sum() / max(1, table.sum())),
        "classes": [float(value) if known else None for value, known in zip(iou, there, strict=True)],
    }
