"""Masks as columns, and mean intersection over union against a slow transcription."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from ssl_ray.schema import NO_LABEL
from ssl_ray.selection import SelectionConfig, decide
from ssl_ray.tasks.masks import (
    IGNORE,
    Mask,
    certainty_histogram,
    columns,
    confusion,
    from_png,
    mean_iou,
    over_thresholds,
    rows_of,
    to_png,
)

CLASSES = 4


def random_masks(count: int = 5, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    draw = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        true = draw.integers(0, CLASSES - 1, (17, 23)).astype(np.uint8)  # the last class is never there
        said = np.where(draw.random(true.shape) < 0.3, draw.integers(0, CLASSES, true.shape), true).astype(np.uint8)
        true[draw.random(true.shape) < 0.1] = IGNORE
        pairs.append((said, true))
    return pairs


def test_a_mask_with_too_many_pixels_is_not_decoded() -> None:
    with pytest.raises(ValueError, match="has 4 x 3 pixels, more than the 11 allowed"):
        from_png(to_png(np.zeros((3, 4), np.uint8)), 11)


def test_mean_iou_equals_a_slow_transcription() -> None:
    pairs = random_masks()
    total = sum((confusion(said, true, CLASSES) for said, true in pairs), np.zeros((CLASSES, CLASSES), np.int64))
    found = mean_iou(total)
    expected = []
    for label in range(CLASSES):
        both = either = 0
        for said, true in pairs:
            for s, t in zip(said.reshape(-1), true.reshape(-1), strict=True):
                if t != IGNORE:
                    both += s == label and t == label
                    either += s == label or t == label
        expected.append(both / either)
    assert found["classes"] == pytest.approx(expected, abs=1e-6)
    assert found["miou"] == pytest.approx(np.mean(expected), abs=1e-6)


def test_one_matrix_is_no_mean_of_images() -> None:
    """The reason for the global matrix: an image without a class says nothing of it."""
    first = (np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8))
    second = (np.ones((4, 4), np.uint8), np.zeros((4, 4), np.uint8))
    total = confusion(*first, 2) + confusion(*second, 2)
    assert mean_iou(total)["classes"] == [0.5, 0.0]


def test_classes_that_are_nowhere_do_not_count() -> None:
    mask = np.zeros((3, 3), np.uint8)
    found = mean_iou(confusion(mask, mask, 5))
    assert found["miou"] == 1.0
    assert found["classes"] == [1.0, None, None, None, None]


def test_columns_come_back() -> None:
    draw = np.random.default_rng(1)
    masks = [Mask(said, draw.integers(0, 256, said.shape).astype(np.uint8)) for said, _ in random_masks()]
    masks.append(Mask(np.full((4, 6), IGNORE, np.uint8)))
    table = columns(pa.array([str(i) for i in range(6)]), 2, np.arange(6), masks)
    assert table["label"].to_pylist()[-1] == NO_LABEL
    for before, after in zip(masks, rows_of(table), strict=True):
        np.testing.assert_array_equal(after.classes, before.classes)
        if before.certainty is None:
            assert after.certainty is None
        else:
            np.testing.assert_array_equal(after.certainty, before.certainty)
        assert after.size == before.size


def test_a_mask_with_a_palette_keeps_its_values_and_a_picture_is_refused() -> None:
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    palette = Image.new("P", (4, 3))
    palette.putdata(values.reshape(-1).tolist())
    palette.putpalette(list(range(256)) * 3)
    buffer = io.BytesIO()
    palette.save(buffer, "PNG")
    np.testing.assert_array_equal(from_png(buffer.getvalue()), values)
    np.testing.assert_array_equal(from_png(to_png(values)), values)
    with pytest.raises(ValueError, match="3 channels"):
        from_png(to_png(np.zeros((3, 4, 3), np.uint8)))
    with pytest.raises(ValueError, match="cannot be decoded"):
        from_png(b"no image")


@pytest.mark.parametrize("least", [0.0, 0.3, 0.5, 0.87, 1.0])
def test_a_threshold_keeps_what_its_histogram_counted(least: float) -> None:
    """The histogram has 100 bins, a certainty 255 steps: they must agree on every pixel."""
    draw = np.random.default_rng(2)
    mask = Mask(draw.integers(0, CLASSES, (64, 64)).astype(np.uint8), draw.integers(0, 256, (64, 64)).astype(np.uint8))
    counts = certainty_histogram([mask], CLASSES, 100)
    assert counts.sum() == 64 * 64
    decision = decide(counts, SelectionConfig(min_confidence=least, balance=False))
    kept = over_thresholds(mask, decision.thresholds)
    for label in range(CLASSES):
        assert (kept == label).sum() == decision.kept[label]
    assert ((kept == mask.classes) | (kept == IGNORE)).all()
