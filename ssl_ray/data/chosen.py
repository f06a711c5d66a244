"""Which rows of a label file a selection keeps, and how often an epoch shows each."""

from __future__ import annotations

import numpy as np

from ssl_ray.artifacts import PseudoLabels
from ssl_ray.label_files import LabelFile
from ssl_ray.selection import copies_of_rows


def copies_in(
    labels: PseudoLabels, file: LabelFile, *, thresholds: np.ndarray, copies: np.ndarray, bins: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, labels and copies of a label file, int32, int32 and int64 [n]; probabilities are not read.

    Args:
        thresholds, copies: of each class, float64 [C], from the selection.
        bins: of its confidence histogram.
        seed: of its fractional copies.
    """
    table = labels.read(file, ["row", "confidence", "label"])
    row, label = table["row"].to_numpy(), table["label"].to_numpy()
    confidence = table["confidence"].to_numpy()
    found = copies_of_rows(confidence, label, row, shard=file.shard, thresholds=thresholds, copies=copies, bins=bins, seed=seed)
    return row, label, found
