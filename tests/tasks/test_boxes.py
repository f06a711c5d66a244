"""Boxes as columns, boxes that make no sense, and average precision against COCO's own code and a slow transcription."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ssl_ray.tasks.boxes import Boxes, average_precision, cleaned, columns, intersection_over_union, matches, rows_of

CLASSES = 3


def random_pairs(count: int = 40, seed: int = 0) -> list[tuple[Boxes, Boxes]]:
    """Truth of all sizes, and answers that are near it, elsewhere, or of another class."""
    draw = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        k = int(draw.integers(0, 6))
        corner, side = draw.uniform(0, 150, (k, 2)), np.exp(draw.uniform(np.log(8), np.log(150), (k, 2)))
        true = np.concatenate([corner, corner + side], axis=1).astype(np.float32)
        labels = draw.integers(0, CLASSES, k).astype(np.int32)
        crowd = draw.random(k) < 0.1
        areas = (side[:, 0] * side[:, 1]).astype(np.float32)
        near = (true + draw.normal(0, 4, true.shape)).astype(np.float32)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        wrong = draw.random(k) < 0.2
        said_labels = np.where(wrong, (labels + 1) % CLASSES, labels).astype(np.int32)
        m = int(draw.integers(0, 3))
        more = np.sort(draw.uniform(0, 300, (m, 2, 2)), axis=1).reshape(m, 4).astype(np.float32)
        more[:, 2:] += 2
        said = np.concatenate([near, more])
        names = np.concatenate([said_labels, draw.integers(0, CLASSES, m)]).astype(np.int32)
        # No two scores alike: what comes first among equals is nobody's promise.
        scores = draw.permutation(np.linspace(0.01, 0.99, 50))[: len(said)].astype(np.float32) + np.float32(len(pairs) * 1e-5)
        pairs.append(
            (
                Boxes((400, 400), said, names, scores),
                Boxes((400, 400), true, labels, np.ones(k, np.float32), crowd, areas, crowd),
            )
        )
    return pairs


def by_coco(pairs: list[tuple[Boxes, Boxes]]) -> np.ndarray:
    images, annotations, answers = [], [], []
    for number, (said, true) in enumerate(pairs, start=1):
        images.append({"id": number, "width": 400, "height": 400})
        for corners, label, crowd, area in zip(true.boxes.tolist(), true.labels, true.ignore, true.areas, strict=True):
            x1, y1, x2, y2 = corners
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": int(label) + 1,
                                "bbox": [x1, y1, x2 - x1, y2 - y1], "area": float(area), "iscrowd": int(crowd)})  # fmt: skip
        for corners, label, score in zip(said.boxes.tolist(), said.labels, said.scores.tolist(), strict=True):
            x1, y1, x2, y2 = corners
            answers.append(
                {"image_id": number, "category_id": int(label) + 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
            )
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"info": {}, "images": images, "annotations": annotations,
                         "categories": [{"id": index + 1, "name": str(index)} for index in range(CLASSES)]}  # fmt: skip
        truth.createIndex()
        judged = COCOeval(truth, truth.loadRes(answers), "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return np.asarray(judged.stats)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_average_precision_equals_pycocotools(seed: int) -> None:
    pairs = random_pairs(seed=seed)
    found, expected = average_precision(pairs, CLASSES), by_coco(pairs)
    for key, value in zip(("map", "map50", "map75", "map_small", "map_medium", "map_large"), expected, strict=False):
        assert found[key] == pytest.approx(value, abs=1e-6), key


def slow_ap(pairs: list[tuple[Boxes, Boxes]], label: int, iou: float) -> float:
    """Average precision of one class at one overlap, word by word: 101 points of recall, precision made falling."""
    entries: list[tuple[float, bool]] = []
    total = 0
    for said, true in pairs:
        mine = [i for i in range(len(true)) if true.labels[i] == label]
        total += len(mine)
        taken: set[int] = set()
        for index in sorted((i for i in range(len(said)) if said.labels[i] == label), key=lambda i: -said.scores[i]):
            best, most = None, iou
            for other in mine:
                overlap = intersection_over_union(said.boxes[index : index + 1], true.boxes[other : other + 1])[0, 0]
                if other not in taken and overlap >= most:
                    best, most = other, overlap
            if best is not None:
                taken.add(best)
            entries.append((float(said.scores[index]), best is not None))
    entries.sort(key=lambda entry: -entry[0])
    precision, recall, right = [], [], 0
    for count, (_, good) in enumerate(entries, start=1):
        right += good
        precision.append(right / count)
        recall.append(right / total)
    points = []
    for point in np.linspace(0, 1, 101):
        later = [p for p, r in zip(precision, recall, strict=True) if r >= point]
        points.append(max(later, default=0.0))
    return float(np.mean(points))


def test_average_precision_equals_a_slow_transcription() -> None:
    pairs = [(said, true.taken(~true.ignore)) for said, true in random_pairs(seed=5)]
    found = average_precision(pairs, CLASSES)
    overlaps = np.linspace(0.5, 0.95, 10)
    each = [[slow_ap(pairs, label, iou) for iou in overlaps] for label in range(CLASSES)]
    assert found["map"] == pytest.approx(np.mean(each), abs=1e-6)
    assert found["classes"] == pytest.approx([np.mean(row) for row in each], abs=1e-6)
    assert found["map50"] == pytest.approx(np.mean([row[0] for row in each]), abs=1e-6)


def test_perfect_and_empty_answers() -> None:
    pairs = [(true, true) for _, true in random_pairs(10)]
    assert average_precision(pairs, CLASSES)["map"] == pytest.approx(1.0)
    nothing = Boxes((400, 400), np.empty((0, 4), np.float32), np.empty(0, np.int32), np.empty(0, np.float32))
    assert average_precision([(nothing, true) for _, true in pairs], CLASSES)["map"] == 0.0
    absent = average_precision([(true, true) for _, true in pairs], CLASSES + 1)
    assert absent["classes"][CLASSES] is None


def test_columns_come_back() -> None:
    said = [pair[0] for pair in random_pairs(6)]
    ids = pa.array([f"image-{index}" for index in range(6)])
    table = columns(ids, 4, np.arange(6), said)
    assert table["confidence"].to_pylist() == pytest.approx([item.scores.max() if len(item) else 0.0 for item in said])
    back = rows_of(pa.concat_tables([table.slice(0, 2), table.slice(2)]))
    for before, after in zip(said, back, strict=True):
        assert after.size == before.size
        for name in ("boxes", "labels", "scores"):
            np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    for before, after in zip(said[2:], rows_of(table.slice(2)), strict=True):
        np.testing.assert_array_equal(after.boxes, before.boxes)
    true = [pair[1] for pair in random_pairs(6)]
    for before, after in zip(true, rows_of(columns(ids, 0, np.arange(6), true, targets=True)), strict=True):
        np.testing.assert_array_equal(after.ignore, before.ignore)
        np.testing.assert_array_equal(after.areas, before.areas)
        np.testing.assert_array_equal(after.crowd, before.crowd)
    assert any(item.ignore.any() for item in true)
    older = columns(ids, 0, np.arange(6), true, targets=True).drop_columns(["crowd"])
    for before, after in zip(true, rows_of(older), strict=True):
        np.testing.assert_array_equal(after.crowd, before.ignore)


def test_boxes_that_make_no_sense_are_named() -> None:
    boxes = np.array([[10, 10, 20, 20], [20, 10, 10, 20], [5, 5, 5, 9], [200, 0, 220, 10], [-5, 2, 10, 8], [np.nan, 0, 1, 1]])
    cut, kept, reasons = cleaned((100, 50), boxes, np.zeros(6, np.int32))
    assert kept.tolist() == [0, 4]
    assert cut[4].tolist() == [0, 2, 10, 8]
    assert reasons == {
        "box whose corners are reversed": 1,
        "box without an area": 1,
        "box outside its image": 1,
        "box cut to its image": 1,
        "box whose corners are no numbers": 1,
    }


def test_a_true_box_is_found_once() -> None:
    true = Boxes((50, 50), np.array([[0, 0, 10, 10]], np.float32), np.array([1], np.int32), np.ones(1, np.float32))
    said = Boxes((50, 50), np.array([[0, 0, 10, 9], [0, 0, 10, 10], [0, 0, 10, 10]], np.float32), np.array([1, 1, 2], np.int32),
                 np.array([0.6, 0.9, 0.95], np.float32))  # fmt: skip
    right, counts = matches(said, true)
    assert right.tolist() == [False, True, False]
    assert counts.all()


def test_what_finds_a_crowd_does_not_count() -> None:
    true = Boxes((50, 50), np.array([[0, 0, 10, 10], [20, 20, 40, 40]], np.float32), np.zeros(2, np.int32), np.ones(2, np.float32),
                 ignore=np.array([False, True]), crowd=np.array([False, True]))  # fmt: skip
    said = Boxes((50, 50), np.array([[0, 0, 10, 10], [20, 20, 40, 41], [21, 20, 40, 40], [0, 30, 10, 40], [30, 30, 34, 34]], np.float32),
                 np.zeros(5, np.int32), np.array([0.9, 0.8, 0.7, 0.6, 0.5], np.float32))  # fmt: skip
    right, counts = matches(said, true)
    assert right.tolist() == [True, False, False, False, False]
    assert counts.tolist() == [True, False, False, True, False]  # the last one is small, and wholly inside
    single = replace(true, crowd=np.zeros(2, bool))  # a difficult object is no region
    assert matches(said, single)[1].tolist() == [True, False, False, True, True]


class TestDifficultObjects:
    """VOC's rule: neither they nor what finds them count; they hide nothing else."""

    TRUE = Boxes((200, 200), np.array([[0, 0, 100, 100], [120, 120, 160, 160]], np.float32), np.zeros(2, np.int32),
                 np.ones(2, np.float32), ignore=np.array([True, False]), areas=np.array([1e4, 1600], np.float32),
                 crowd=np.zeros(2, bool))  # fmt: skip

    def said(self, corners: list[list[float]]) -> Boxes:
        count = len(corners)
        scores = np.linspace(0.9, 0.5, count).astype(np.float32)
        return Boxes((200, 200), np.array(corners, np.float32), np.zeros(count, np.int32), scores)

    def test_small_wrong_boxes_inside_one_are_wrong(self) -> None:
        found = average_precision([(self.said([[10, 10, 20, 20], [40, 40, 55, 50], [120, 120, 160, 160]]), self.TRUE)], 1)
        assert found["map50"] == pytest.approx(1 / 3)

    def test_what_finds_one_does_not_count(self) -> None:
        found = average_precision([(self.said([[0, 0, 100, 95], [0, 0, 90, 100], [120, 120, 160, 160]]), self.TRUE)], 1)
        assert found["map50"] == pytest.approx(1.0)

    def test_what_finds_another_thing_more_counts(self) -> None:
        true = replace(self.TRUE, boxes=np.array([[0, 0, 100, 100], [0, 0, 100, 80]], np.float32))
        found = average_precision([(self.said([[0, 0, 100, 78]]), true)], 1)
        assert found["map50"] == pytest.approx(1.0)
