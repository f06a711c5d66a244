from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ssl_ray.errors import ResourceError
from ssl_ray.selection import NOTHING_KEPT, SelectionConfig, check_copies, copies_of_rows, decide, histogram, sharpen
from ssl_ray.tasks.classification import columns, probs_of


def slow_decision(
    confidence: np.ndarray, label: np.ndarray, num_classes: int, target: int, lowest: float
) -> list[tuple[float, int]]:
    """A plain transcription of the released rule: walk the bins of 0.01 down from 1.00 until there is enough."""
    found = []
    for c in range(num_classes):
        bins = [0] * 101
        for p, y in zip(confidence, label, strict=True):
            if y == c:
                bins[int(p * 100)] += 1
        total, edge = 0, 101
        for b in range(100, -1, -1):
            if b / 100 < lowest:
                break
            total += bins[b]
            edge = b
            if total >= target:
                break
        found.append((edge / 100, total))
    return found


@pytest.fixture
def labels() -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    label = draw.choice(4, 3000, p=[0.6, 0.3, 0.08, 0.02]).astype(np.int32)
    return draw.beta(4, 1.5, 3000).astype(np.float32), label


@pytest.mark.parametrize(("target", "lowest"), [(100, 0.3), (750, 0.3), (2000, 0.5), (10, 0.0), (300, 0.29)])
def test_decisions_equal_the_transcription(labels: tuple[np.ndarray, np.ndarray], target: int, lowest: float) -> None:
    confidence, label = labels
    decision = decide(histogram(confidence, label, 4, 100), SelectionConfig(per_class=target, min_confidence=lowest))
    for c, (threshold, kept) in enumerate(slow_decision(confidence, label, 4, target, lowest)):
        assert decision.kept[c] == kept
        assert decision.thresholds[c] == pytest.approx(threshold)
        assert decision.copies[c] == pytest.approx(target / kept)


def test_a_histogram_is_a_fold(labels: tuple[np.ndarray, np.ndarray]) -> None:
    confidence, label = labels
    whole = histogram(confidence, label, 4, 100)
    parts = [histogram(confidence[i::7], label[i::7], 4, 100) for i in range(7)]
    np.testing.assert_array_equal(whole, sum(parts))
    assert histogram(np.float32([1.0]), np.int32([0]), 1, 100)[0, 100] == 1


def test_no_balance_keeps_each_once_and_upsample_off_caps(labels: tuple[np.ndarray, np.ndarray]) -> None:
    counts = histogram(*labels, 4, 100)
    plain = decide(counts, SelectionConfig(balance=False, min_confidence=0.8))
    assert set(plain.copies) == {1.0}
    assert plain.thresholds == pytest.approx([0.8] * 4)
    assert decide(counts, SelectionConfig(per_class=5000, upsample=False)).copies.max() == 1.0
    assert decide(counts, SelectionConfig(per_class=5000, max_copies=3)).copies.max() == 3.0


def test_an_empty_class_is_told() -> None:
    decision = decide(histogram(np.float32([0.9]), np.int32([0]), 2, 100), SelectionConfig(per_class=1))
    assert decision.kept.tolist() == [1, 0]
    assert decision.thresholds[1] == NOTHING_KEPT


def test_copies_are_right_in_expectation_and_do_not_depend_on_pieces(labels: tuple[np.ndarray, np.ndarray]) -> None:
    confidence, label = labels
    row = np.arange(len(label), dtype=np.int32)
    decision = decide(histogram(confidence, label, 4, 100), SelectionConfig(per_class=400))
    options = {"shard": 3, "thresholds": decision.thresholds, "copies": decision.copies, "bins": 100, "seed": 1}
    whole = copies_of_rows(confidence, label, row, **options)
    pieces = [copies_of_rows(confidence[p], label[p], row[p], **options) for p in np.array_split(row, 5)]
    np.testing.assert_array_equal(whole, np.concatenate(pieces))
    shown = np.bincount(label, weights=whole, minlength=4)
    fraction = decision.copies % 1
    sigma = np.sqrt(decision.kept * fraction * (1 - fraction))
    assert (np.abs(shown - 400) <= 4 * sigma + 1e-9).all()
    assert (whole[confidence < decision.thresholds[label] - 0.01] == 0).all()
    assert not np.array_equal(whole, copies_of_rows(confidence, label, row, **(options | {"seed": 2})))


def test_sharpen() -> None:
    probs = np.array([[0.6, 0.3, 0.1]], np.float16)
    np.testing.assert_allclose(sharpen(probs, 1.0), [[0.6, 0.3, 0.1]], atol=1e-3)
    cold = sharpen(probs, 0.5)
    np.testing.assert_allclose(cold, [[0.36 / 0.46, 0.09 / 0.46, 0.01 / 0.46]], atol=2e-3)
    assert cold.sum() == pytest.approx(1.0)


def test_probabilities_that_a_temperature_raises_are_stored(tmp_path: Path) -> None:
    """Float16 would make zeros of them, and lose most of the distribution at temperature 4."""
    logits = np.random.default_rng(0).normal(0, 6, (8, 1000))
    exact = np.exp(logits - logits.max(axis=1, keepdims=True))
    exact /= exact.sum(axis=1, keepdims=True)
    ids = pa.array([f"{number}" for number in range(8)])
    table = columns(ids, 0, np.arange(8), exact.astype(np.float32))
    pq.write_table(table, tmp_path / "labels.parquet")
    stored = probs_of(pq.read_table(tmp_path / "labels.parquet"), 1000)
    warm = exact**0.25 / (exact**0.25).sum(axis=1, keepdims=True)
    assert 0.5 * np.abs(sharpen(stored, 4.0) - warm).sum(axis=1).max() < 1e-4


def test_the_surest_share_of_every_class() -> None:
    """A threshold a class, over the least confidence, whatever the classes' own scores are."""
    counts = np.zeros((2, 11), np.int64)
    counts[0, 3:10] = 10  # 70 over 0.3
    counts[1, 5], counts[1, 9] = 30, 10
    counts[:, 0] = 500  # under the least confidence: not counted
    found = decide(counts, SelectionConfig(min_confidence=0.3, balance=False, bins=10, top_share=0.25))
    np.testing.assert_allclose(found.thresholds, [0.8, 0.9])
    assert found.kept.tolist() == [20, 10]
    assert found.copies.tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="exclude each other"):
        SelectionConfig(top_share=0.5)


def test_more_copies_than_the_memory_holds_are_refused() -> None:
    counts = np.zeros((2, 101), np.int64)
    counts[:, 100] = 5
    fitting, huge = (decide(counts, SelectionConfig(per_class=count)) for count in (1000, 10**12))
    check_copies(fitting)
    with pytest.raises(ResourceError, match=r"2,000,000,000,000 pseudo-labels per epoch: .*lower selection\.per_class"):
        check_copies(huge)


@pytest.mark.parametrize("setting", ["per_class", "bins"])
def test_sizes_of_a_selection_have_a_limit(setting: str) -> None:
    with pytest.raises(ValueError, match=rf"{setting}[\s\S]*less than or equal to"):
        SelectionConfig.model_validate({setting: 10**15})
