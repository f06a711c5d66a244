"""What a labeler says of images, and the columns that it becomes: probabilities, features, boxes or masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa

from ssl_ray.schema import feature_columns
from ssl_ray.tasks import boxes, classification, masks

Output = Literal["labels", "features"]
"""What is written of an image, and the folder that it is written to: what the model says, or the backbone's features."""


class Answers(Protocol):
    """`found` holds one item an image: an array, or a list."""

    def compute(self, pixels: np.ndarray, sizes: np.ndarray, batch: int) -> Any:
        """uint8 [n, S, S, 3] and int32 [n, 2] (width and height that they came with) -> found."""

    def finite(self, found: Any) -> np.ndarray:
        """bool [n]: whether the net gave numbers."""

    def columns(self, ids: pa.Array, shard: int, rows: np.ndarray, found: Any) -> pa.Table:
        """Rows to store."""


@dataclass(frozen=True)
class Probabilities:
    model: Any
    top_k: int | None = None

    def compute(self, pixels: np.ndarray, sizes: np.ndarray, batch: int) -> np.ndarray:
        found: np.ndarray = self.model.probs(pixels, batch)
        return found

    def finite(self, found: np.ndarray) -> np.ndarray:
        return np.isfinite(found).all(axis=1)

    def columns(self, ids: pa.Array, shard: int, rows: np.ndarray, found: np.ndarray) -> pa.Table:
        return classification.columns(ids, shard, rows, found, self.top_k)


@dataclass(frozen=True)
class Vectors:
    model: Any

    def compute(self, pixels: np.ndarray, sizes: np.ndarray, batch: int) -> np.ndarray:
        found: np.ndarray = self.model.features(pixels, batch)
        return found

    def finite(self, found: np.ndarray) -> np.ndarray:
        return np.isfinite(found).all(axis=1)

    def columns(self, ids: pa.Array, shard: int, rows: np.ndarray, found: np.ndarray) -> pa.Table:
        return feature_columns(ids, shard, rows, found)


@dataclass(frozen=True)
class Scenes:
    """Boxes or masks: a list of `tasks.boxes.Boxes` or `tasks.masks.Mask`."""

    model: Any

    def compute(self, pixels: np.ndarray, sizes: np.ndarray, batch: int) -> list[Any]:
        found: list[Any] = self.model.scenes(pixels, sizes, batch)
        return found

    def finite(self, found: list[Any]) -> np.ndarray:
        return np.array([item.finite for item in found], bool)

    def columns(self, ids: pa.Array, shard: int, rows: np.ndarray, found: list[Any]) -> pa.Table:
        task = boxes if self.model.task == "detection" else masks
        return task.columns(ids, shard, rows, found)


def answers_of(model: Any, output: Output, top_k: int | None) -> Answers:
    if output == "features":
        return Vectors(model)
    return Probabilities(model, top_k) if model.task == "classification" else Scenes(model)


def chosen(found: Any, kept: np.ndarray) -> Any:
    """Some of what was found; kept bool [n]."""
    return found[kept] if isinstance(found, np.ndarray) else [item for item, good in zip(found, kept, strict=True) if good]
