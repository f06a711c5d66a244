"""Object detection: what a label is, as columns; boxes that make no sense; average precision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from ssl_ray.schema import BOX_LABELS, BOX_TARGETS, NO_LABEL

SMALL, LARGE = 32**2, 96**2
"""Pixels up to which an object is small, and from which it is large (COCO)."""


PARTS = ("boxes", "labels", "scores", "ignore", "areas", "crowd")
"""Columns of what stands in an image, one value a box."""


@dataclass(frozen=True)
class Boxes:
    """What stands in one image."""

    size: tuple[int, int]  # width and height of the image, in pixels
    boxes: np.ndarray  # float32 [k, 4], corners x1 y1 x2 y2 in pixels of that size
    labels: np.ndarray  # int32 [k]
    scores: np.ndarray  # float32 [k]; 1 where a person drew the box
    ignore: np.ndarray = field(default_factory=lambda: np.empty(0, bool))  # bool [k] of a target
    areas: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))  # float32 [k] of a target
    crowd: np.ndarray = field(default_factory=lambda: np.empty(0, bool))  # bool [k] of a target: regions, of those to ignore
    finite: bool = True  # whether the net gave numbers

    def __len__(self) -> int:
        return len(self.labels)

    def taken(self, kept: np.ndarray) -> Boxes:
        """Some of the boxes; kept bool [k]."""
        parts = {name: value[kept] for name in PARTS if len(value := getattr(self, name)) == len(kept)}
        return replace(self, **parts)


def cleaned(size: tuple[int, int], boxes: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, Counter[str]]:
    """Boxes that a net can learn: cut to the image, with an area.

    Args:
        boxes: float [k, 4], corners.
        labels: int [k].

    Returns:
        boxes float32 [k, 4], positions int64 [m] of those to keep, and how many were cut or left out, by reason.
    """
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    width, height = size
    found: Counter[str] = Counter()
    broken = ~np.isfinite(boxes).all(axis=1)
    reversed_ = ~broken & ((boxes[:, 2] < boxes[:, 0]) | (boxes[:, 3] < boxes[:, 1]))
    with np.errstate(invalid="ignore"):
        cut = np.stack([boxes[:, 0::2].clip(0, width), boxes[:, 1::2].clip(0, height)], axis=2).reshape(-1, 4)
        flat = ~broken & ~reversed_ & ((boxes[:, 2] - boxes[:, 0] <= 0) | (boxes[:, 3] - boxes[:, 1] <= 0))
        outside = ~broken & ~reversed_ & ~flat & ((cut[:, 2] - cut[:, 0] <= 0) | (cut[:, 3] - cut[:, 1] <= 0))
        over = ~broken & ~reversed_ & ~flat & ~outside & (np.abs(cut - boxes) > 1).any(axis=1)
    for reason, where in (
        ("box whose corners are no numbers", broken),
        ("box whose corners are reversed", reversed_),
        ("box without an area", flat),
        ("box outside its image", outside),
        ("box cut to its image", over),
    ):
        if where.any():
            found[reason] = int(where.sum())
    return cut, np.flatnonzero(~(broken | reversed_ | flat | outside)), found


def columns(image_id: pa.Array, shard: int, row: np.ndarray, found: Sequence[Boxes], *, targets: bool = False) -> pa.Table:
    """What stands in some images, as rows to store: a table of `schema.BOX_LABELS`, or of `schema.BOX_TARGETS`."""
    best = [int(item.scores.argmax()) if len(item) else -1 for item in found]
    counts = np.array([len(item) for item in found], np.int64)
    offsets = pa.array(np.concatenate([[0], counts.cumsum()]).astype(np.int32))

    def lists(values: list[np.ndarray], kind: Any, width: int | None = None) -> pa.Array:
        flat = np.concatenate([value.reshape(-1) for value in values]) if values else np.empty(0)
        inner = pa.array(np.asarray(flat), kind)
        return pa.ListArray.from_arrays(offsets, inner if width is None else pa.FixedSizeListArray.from_arrays(inner, width))

    data: dict[str, Any] = {
        "image_id": image_id,
        "shard": pa.array(np.full(len(found), shard, np.int32)),
        "row": pa.array(np.asarray(row, np.int32)),
        "width": pa.array([item.size[0] for item in found], pa.int32()),
        "height": pa.array([item.size[1] for item in found], pa.int32()),
        "confidence": pa.array([item.scores[i] if i >= 0 else 0.0 for item, i in zip(found, best, strict=True)], pa.float32()),
        "label": pa.array([item.labels[i] if i >= 0 else NO_LABEL for item, i in zip(found, best, strict=True)], pa.int32()),
        "boxes": lists([item.boxes.astype(np.float32) for item in found], pa.float32(), 4),
        "labels": lists([item.labels.astype(np.int32) for item in found], pa.int32()),
        "scores": lists([item.scores.astype(np.float32) for item in found], pa.float32()),
    }
    if targets:
        data["ignore"] = lists([item.ignore.astype(bool) for item in found], pa.bool_())
        data["areas"] = lists([item.areas.astype(np.float32) for item in found], pa.float32())
        data["crowd"] = lists([_flags(item.crowd, len(item)) for item in found], pa.bool_())
    schema = BOX_TARGETS if targets else BOX_LABELS
    return pa.table(data).select(schema.names).cast(schema)


def rows_of(table: pa.Table) -> list[Boxes]:
    """The images of a table that `columns` made, in its order."""
    table = table.combine_chunks()
    sizes = zip(table["width"].to_pylist(), table["height"].to_pylist(), strict=True)
    named = {name: _pieces(table[name]) for name in PARTS if name in table.column_names}
    if "ignore" in named:  # targets from before crowds and difficult objects were told apart counted all of them as crowds
        named.setdefault("crowd", named["ignore"])
    nothing = [np.empty(0)] * len(table)
    columns = zip(*(named.get(name, nothing) for name in PARTS), strict=True)
    return [Boxes(size, parts[0].reshape(-1, 4), *parts[1:]) for size, parts in zip(sizes, columns, strict=True)]


def _pieces(column: pa.ChunkedArray) -> list[np.ndarray]:
    """The lists of a column, as arrays."""
    lists = column.combine_chunks()
    lists = lists.chunk(0) if isinstance(lists, pa.ChunkedArray) else lists
    inner = lists.flatten()
    width = 1
    if pa.types.is_fixed_size_list(inner.type):
        width, inner = inner.type.list_size, inner.flatten()
    flat = inner.to_numpy(zero_copy_only=False)
    edges = np.concatenate([[0], np.asarray(lists.value_lengths().to_numpy(zero_copy_only=False), np.int64).cumsum()]) * width
    return [flat[start:stop] for start, stop in pairwise(edges)]


def average_precision(pairs: Iterable[tuple[Boxes, Boxes]], num_classes: int) -> dict[str, Any]:
    """COCO's average precision over pairs of what was said and what is true.

    By torchmetrics with faster-coco-eval: 100 boxes an image, IoU thresholds 0.5 to 0.95, 101 points of recall. What lies
    inside a crowd does not count (COCO); nor does what finds a difficult object (VOC), nor that object.

    Returns:
        `map`, `map50`, `map75`, `map_small`, `map_medium`, `map_large` as fractions (None where no object is of that size), and
        `classes`: the AP of every class, None where none of it is there.
    """
    import torch
    from torchmetrics.detection import MeanAveragePrecision

    # torchmetrics' own thresholds are float32, and miss a recall of exactly 0.7 where COCO's, float64, hit it.
    metric = MeanAveragePrecision(
        iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
        rec_thresholds=np.linspace(0, 1, 101).tolist(),
        class_metrics=True,
        backend="faster_coco_eval",
    )
    metric.warn_on_many_detections = False
    for said, true in map(without_difficult, pairs):
        metric.update(
            [
                {
                    "boxes": torch.tensor(said.boxes),
                    "scores": torch.tensor(said.scores),
                    "labels": torch.tensor(said.labels).long(),
                }
            ],
            [
                {
                    "boxes": torch.tensor(true.boxes),
                    "labels": torch.tensor(true.labels).long(),
                    "iscrowd": torch.tensor(_flags(true.crowd, len(true))).long(),
                    "area": torch.tensor(true.areas),
                }
            ],
        )
    found = metric.compute()

    def known(value: Any) -> float | None:
        number = float(value)
        return None if number < 0 else number

    classes: list[float | None] = [None] * num_classes
    for label, value in zip(found["classes"].reshape(-1).tolist(), found["map_per_class"].reshape(-1).tolist(), strict=True):
        classes[int(label)] = known(value)
    names = {"map": "map", "map50": "map_50", "map75": "map_75"} | {
        f"map_{size}": f"map_{size}" for size in ("small", "medium", "large")
    }
    return {name: known(found[key]) for name, key in names.items()} | {"classes": classes}


def _flags(values: np.ndarray, count: int) -> np.ndarray:
    """bool [count]; none is set where nothing was said."""
    return values.astype(bool) if len(values) else np.zeros(count, bool)


def without_difficult(pair: tuple[Boxes, Boxes]) -> tuple[Boxes, Boxes]:
    """A pair of what was said and what is true, without difficult objects and what finds one: a box whose class they share, and
    which overlaps nothing of that class more, and them by half (VOC's rule)."""
    said, true = pair
    difficult = _flags(true.ignore, len(true)) & ~_flags(true.crowd, len(true))
    if not difficult.any():
        return pair
    there = true.taken(~difficult)
    if not len(said):
        return said, there
    plain = np.flatnonzero(~_flags(true.crowd, len(true)))
    overlap = intersection_over_union(said.boxes, true.boxes[plain])
    overlap[said.labels[:, None] != true.labels[None, plain]] = 0.0
    best = overlap.argmax(axis=1)
    finds = difficult[plain][best] & (overlap.max(axis=1) >= 0.5)
    return said.taken(~finds), there


def matches(said: Boxes, true: Boxes, iou: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Which of the boxes that were said are right, and which count, bool [k] each: in falling order of their scores, each true
    box is found once, by one of its class that overlaps it by at least `iou`. A box that finds nothing but something to be
    ignored (a difficult object), or of which `iou` lies inside a crowd, does not count."""
    right, counts = np.zeros(len(said), bool), np.ones(len(said), bool)
    if not len(said) or not len(true):
        return right, counts
    ignored, crowd = _flags(true.ignore, len(true)), _flags(true.crowd, len(true))
    same = said.labels[:, None] == true.labels[None]
    overlap = intersection_over_union(said.boxes, true.boxes) * same
    inside = np.where(crowd, share_inside(said.boxes, true.boxes) * same, overlap)
    taken = np.zeros(len(true), bool)
    for index in np.argsort(-said.scores, kind="stable"):
        free = np.where(taken | ignored, 0.0, overlap[index])
        best = int(free.argmax())
        if free[best] >= iou:
            right[index] = taken[best] = True
        else:
            counts[index] = not (inside[index][ignored] >= iou).any()
    return right, counts


def intersection_over_union(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float [n, 4] and [m, 4], corners -> float [n, m]."""
    inner = _intersection(a, b)
    union = _area(a)[:, None] + _area(b)[None] - inner
    return np.divide(inner, union, out=np.zeros_like(inner), where=union > 0)


def share_inside(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of each box of a, how much lies inside each of b: float [n, 4] and [m, 4], corners -> float [n, m]."""
    inner, area = _intersection(a, b), _area(a)[:, None]
    return np.divide(inner, area, out=np.zeros_like(inner), where=area > 0)


def _intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inner: np.ndarray = (high - low).clip(0).prod(axis=2)
    return inner


def _area(boxes: np.ndarray) -> np.ndarray:
    area: np.ndarray = (boxes[:, 2:] - boxes[:, :2]).clip(0).prod(axis=1)
    return area
