"""Probes on features whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from ssl_ray.probes.knn import knn_predict
from ssl_ray.probes.linear import linear_probe
from ssl_ray.probes.metrics import score
from ssl_ray.settings.training import LinearConfig


def clouds(count: int, seed: int, scale: float = 1.0, noise: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Three classes around three directions; one useless dimension is very loud."""
    draw = np.random.default_rng(seed)
    label = draw.integers(0, 3, count)
    features = np.eye(3)[label] * 3 + draw.normal(0, noise, (count, 3))
    loud = draw.normal(5, 100 * scale, (count, 1))
    return np.concatenate([features, loud], axis=1).astype(np.float32), label


class TestKnn:
    def test_a_transcription(self) -> None:
        draw = np.random.default_rng(0)
        bank, labels, queries = draw.normal(size=(20, 4)), draw.integers(0, 3, 20), draw.normal(size=(5, 4))
        found = knn_predict(bank, labels, queries, num_classes=3, k=7, temperature=0.2)
        for row, query in zip(found, queries, strict=True):
            near = sorted(
                ((bank[i] @ query / np.linalg.norm(bank[i]) / np.linalg.norm(query), labels[i]) for i in range(20)),
                reverse=True,
            )[:7]
            votes = np.zeros(3)
            for cosine, label in near:
                votes[label] += np.exp(cosine / 0.2)
            np.testing.assert_allclose(row, votes / votes.sum(), rtol=1e-4)

    def test_several_labels(self) -> None:
        bank, marks = np.eye(2, dtype=np.float32), np.array([[1, 1, 0], [0, 0, 1]])
        np.testing.assert_allclose(knn_predict(bank, marks, bank, num_classes=3, k=1), marks, atol=1e-6)

    def test_fewer_images_than_k(self) -> None:
        bank = np.eye(2, dtype=np.float32)
        assert knn_predict(bank, np.array([0, 1]), bank, num_classes=2).argmax(1).tolist() == [0, 1]


class TestLinear:
    config = LinearConfig(steps=200, batch=64)

    def test_it_finds_the_classes_behind_a_loud_dimension(self) -> None:
        train, val, test = clouds(600, 0), clouds(200, 1), clouds(400, 2)
        found = linear_probe(self.config, train, val, num_classes=3, metric="top1", address=(0,))
        assert score(found.predict(test[0]), test[1], "top1") > 0.95
        assert found.rate in self.config.rates
        assert found.step >= 100, "the second half of the steps"

    def test_validation_chooses_the_rate(self) -> None:
        """Of rates that are far too small, good and far too large, the one that alone does best on validation."""
        train, val = clouds(600, 0, noise=3), clouds(200, 1, noise=3)
        rates = (1e-3, 0.3, 3e4)
        alone = {
            rate: linear_probe(
                LinearConfig(rates=(rate,), steps=100), train, val, num_classes=3, metric="top1", address=(0,)
            ).val
            for rate in rates
        }
        assert len(set(alone.values())) > 1
        found = linear_probe(LinearConfig(rates=rates, steps=100), train, val, num_classes=3, metric="top1", address=(0,))
        assert found.val == max(alone.values()) == alone[found.rate]

    def test_its_validation_score_is_that_of_the_weights_it_returns(self) -> None:
        train, val = clouds(300, 0), clouds(200, 1)
        found = linear_probe(self.config, train, val, num_classes=3, metric="top1", address=(0,))
        assert score(found.predict(val[0]), val[1], "top1") == pytest.approx(found.val, abs=0.011)

    def test_several_labels(self) -> None:
        features, label = clouds(600, 0, scale=0.0)
        marks = np.stack([label == 0, label != 1], axis=1).astype(np.int64)
        found = linear_probe(
            self.config,
            (features[:400], marks[:400]),
            (features[400:], marks[400:]),
            num_classes=2,
            metric="auroc",
            address=(0,),
        )
        assert found.val > 0.97

    def test_the_same_address_gives_the_same_weights(self) -> None:
        train, val = clouds(300, 0), clouds(100, 1)
        first, second, other = (
            linear_probe(self.config, train, val, num_classes=3, metric="top1", address=(seed,)) for seed in (0, 0, 1)
        )
        assert np.array_equal(first.weight, second.weight)
        assert not np.array_equal(first.weight, other.weight)


class TestMetrics:
    def test_auroc_is_the_share_of_pairs_in_order(self) -> None:
        draw = np.random.default_rng(0)
        logits, truth = draw.normal(size=(50, 2)).astype(np.float32), draw.integers(0, 2, (50, 2))
        areas = []
        for c in range(2):
            positive, negative = logits[truth[:, c] == 1, c], logits[truth[:, c] == 0, c]
            areas.append((positive[:, None] > negative[None]).mean())
        assert score(logits, truth, "auroc") == pytest.approx(np.mean(areas), abs=1e-6)

    def test_large_logits_keep_their_order(self) -> None:
        logits, truth = np.array([[40.0], [50.0], [60.0], [70.0]], np.float32), np.array([[0], [1], [0], [1]])
        assert score(logits, truth, "auroc") == pytest.approx(0.75)

    def test_a_class_without_positives_is_left_out(self) -> None:
        logits, truth = np.array([[0.1, 3.0], [0.9, 2.0]], np.float32), np.array([[0, 0], [1, 0]])
        assert score(logits, truth, "auroc") == 1.0
