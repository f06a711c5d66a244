"""What a setting is worth in labels."""

from __future__ import annotations

import math

import pytest

from ssl_ray.worth import in_words, labels_for, spread, worth


def curve(slope: float, shift: float, seeds: int = 3, noise: float = 0.0) -> dict[float, dict[int, float]]:
    return {
        n: {seed: shift + slope * math.log10(n) + noise * (-1) ** seed for seed in range(seeds)} for n in (10.0, 100.0, 1000.0)
    }


def test_ten_times_the_labels_where_the_curve_says_so() -> None:
    """Closed form: a metric that grows by 0.1 with every factor of ten, and a gain of 0.1, are ten times the labels."""
    base, better = curve(0.1, 0.5), curve(0.1, 0.6)
    better[10.0][0] += 1e-4  # without any spread there is no interval to be inside of
    found = worth(base, better)
    assert [item.labels for item in found] == [10.0, 100.0, 1000.0]
    assert found[0].value == pytest.approx(100, rel=0.01)
    assert found[1].value == pytest.approx(1000, rel=0.01)
    assert math.isinf(found[2].value)
    assert found[0].clear
    assert found[0].low <= found[0].value <= found[0].high
    said = in_words(found[0], "self-training", "labels alone")
    assert said.startswith("With 10 labels self-training is worth 100 labels [")
    assert "more than the 1,000 labels" in in_words(found[2], "self-training", "labels alone")


def test_between_points_the_logarithm_is_straight() -> None:
    points = [(10.0, 0.5, 1), (1000.0, 0.7, 1)]
    assert labels_for(points, 10, 0.1) == pytest.approx(100)
    assert labels_for(points, 10, 0.0) == 10
    assert math.isnan(labels_for(points, 10, -0.1))
    assert math.isinf(labels_for(points, 10, 0.3))


def test_a_curve_that_dips_is_made_monotone() -> None:
    points = [(10.0, 0.5, 1), (100.0, 0.7, 1), (200.0, 0.6, 1), (1000.0, 0.9, 1)]
    assert labels_for(points, 10, 0.15) == pytest.approx(100)  # both middle ones count as 0.65
    # A gain over the point that dips is read from the curve: never fewer labels than there are.
    base = {labels: {0: value} for labels, value, _ in points}
    found = {item.labels: item for item in worth(base, {200.0: {0: 0.61}, 100.0: {0: 0.71}})}
    assert found[200.0].value > 200
    assert found[100.0].value > 100
    falling = {40.0: {0: 0.60, 1: 0.61}, 100.0: {0: 0.50, 1: 0.51}}
    for item in worth(falling, {100.0: {0: 0.52, 1: 0.531}}):
        assert in_words(item, "x", "y")


def test_what_seeds_cannot_tell_apart_is_not_claimed() -> None:
    base, better = curve(0.1, 0.5), curve(0.1, 0.505, noise=0.05)
    found = worth(base, better)[0]
    assert not found.clear
    assert "cannot be told from" in in_words(found, "x", "y")
    one = worth(curve(0.1, 0.5, seeds=1), curve(0.1, 0.6, seeds=1))[0]
    assert "one seed: no interval" in in_words(one, "x", "y")
    worse = worth(
        curve(0.1, 0.5), {n: {s: v - 0.1 - s * 1e-4 for s, v in seeds.items()} for n, seeds in curve(0.1, 0.5).items()}
    )[0]
    assert "is worse than" in in_words(worse, "x", "y")


def test_gains_are_paired_by_seed() -> None:
    base = {10.0: {0: 0.1, 1: 0.5, 2: 0.9}}
    better = {10.0: {0: 0.2, 1: 0.6, 2: 1.0, 3: 0.0}}  # seed 3 has no partner
    gain = worth(base, better)[0].gain
    assert gain.n == 3
    assert gain.std == pytest.approx(0, abs=1e-12)


def test_the_interval_is_students() -> None:
    found = spread([1.0, 2.0, 3.0])
    assert found.low == pytest.approx(2 - 4.303 / math.sqrt(3), rel=1e-3)
    assert math.isnan(spread([1.0]).low)
    many = spread([float(value) for value in range(11)])
    assert many.high - many.mean == pytest.approx(2.228 * many.std / math.sqrt(11), rel=1e-3)
