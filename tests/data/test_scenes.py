"""What a student sees of the labels beside its images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ssl_ray.data.scenes import TargetStore
from ssl_ray.label_files import LabelFile
from ssl_ray.storage import Folder
from ssl_ray.tasks import boxes, masks
from ssl_ray.tasks.boxes import Boxes
from ssl_ray.tasks.masks import IGNORE, Mask

ITEM = Boxes(
    (40, 30),
    np.array([[0, 0, 10, 10], [5, 5, 20, 20], [1, 1, 30, 30], [2, 2, 8, 8]], np.float32),
    np.array([0, 1, 0, 1], np.int32),
    np.array([0.9, 0.6, 0.4, 0.3], np.float32),
    ignore=np.array([False, True, False, False]),
    areas=np.ones(4, np.float32),
    crowd=np.array([False, True, False, False]),
)


def store(tmp_path: Path, table: pa.Table, task: str, thresholds: np.ndarray | None) -> TargetStore:
    folder = Folder(str(tmp_path))
    folder.write_table(LabelFile(3, 0, 1).name, table)
    return TargetStore(folder, task, thresholds, keep=2)  # type: ignore[arg-type]


def test_crowds_are_not_trained_on(tmp_path: Path) -> None:
    table = boxes.columns(pa.array(["x"]), 3, np.zeros(1, np.int32), [ITEM], targets=True)
    targets = store(tmp_path, table, "detection", None)
    seen = targets.seen(targets.rows(3)[0])
    assert isinstance(seen, Boxes)
    np.testing.assert_array_equal(seen.boxes, ITEM.boxes[[0, 2, 3]])
    np.testing.assert_array_equal(seen.labels, [0, 0, 1])


@pytest.mark.parametrize(
    ("thresholds", "kept"), [([0.5, 0.3], [0, 1, 3]), ([0.95, 0.5], [1]), ([2.0, 2.0], []), ([0.0, 0.0], [0, 1, 2, 3])]
)
def test_boxes_over_the_threshold_of_their_class(tmp_path: Path, thresholds: list[float], kept: list[int]) -> None:
    table = boxes.columns(pa.array(["x"]), 3, np.zeros(1, np.int32), [ITEM])
    targets = store(tmp_path, table, "detection", np.array(thresholds))
    seen = targets.seen(targets.rows(3)[0])
    assert isinstance(seen, Boxes)
    np.testing.assert_array_equal(seen.boxes, ITEM.boxes[kept])


def test_unsure_pixels_count_as_none(tmp_path: Path) -> None:
    mask = Mask(np.array([[0, 1, 1]], np.uint8), np.array([[200, 120, 140]], np.uint8))
    table = masks.columns(pa.array(["x"]), 3, np.zeros(1, np.int32), [mask])
    targets = store(tmp_path, table, "segmentation", np.array([0.9, 0.5]))
    seen = targets.seen(targets.rows(3)[0])
    assert isinstance(seen, np.ndarray)
    assert seen.tolist() == [[IGNORE, IGNORE, 1]]
