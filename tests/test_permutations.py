"""Permutation sets: distinct, far apart, and with the figures of the released files."""

from __future__ import annotations

import numpy as np
import pytest

from ssl_ray.errors import ConfigError
from ssl_ray.permutations import PermutationsConfig, permutations


def distances(chosen: np.ndarray) -> np.ndarray:
    every = (chosen[:, None] != chosen[None]).sum(axis=2)
    return every[np.triu_indices(len(chosen), 1)]


def test_701_by_rejection_look_like_the_released_ones() -> None:
    """permutations_701.bin: least distance 3, mean 7.99895, no identity, 88,441 pairs without a common tile."""
    chosen = permutations(PermutationsConfig())
    found = distances(chosen)
    assert chosen.shape == (701, 9)
    assert (np.sort(chosen, axis=1) == np.arange(9)).all()
    assert found.min() == 3
    assert found.mean() == pytest.approx(7.99895, abs=0.01)
    assert (found == 9).sum() == pytest.approx(88441, rel=0.04)
    assert not (chosen == np.arange(9)).all(axis=1).any()


def test_greedy_by_the_mean_is_a_slow_transcription() -> None:
    import itertools

    chosen = permutations(PermutationsConfig(count=8, rule="mean", seed=3))
    every = np.array(list(itertools.permutations(range(9))), np.uint8)
    left = [row.tobytes() for row in every]
    for number in range(1, 8):
        so_far = chosen[:number]
        taken = {row.tobytes() for row in so_far}
        mean = (every[:, None] != so_far[None]).sum(axis=2).mean(axis=1)
        mean[[i for i, row in enumerate(left) if row in taken]] = -1
        assert mean[left.index(chosen[number].tobytes())] == mean.max()


def test_100_greedy_have_the_released_file_figures() -> None:
    """permutations_100_max.bin: least distance 2, mean 8.080."""
    found = distances(permutations(PermutationsConfig(count=100, rule="mean")))
    assert found.mean() == pytest.approx(8.080, abs=0.01)
    assert found.min() >= 2


def test_greedy_by_the_minimum_keeps_a_greater_distance() -> None:
    found = distances(permutations(PermutationsConfig(count=60, rule="minimum")))
    assert found.min() >= 6


def test_a_seed_names_a_set() -> None:
    first, again, other = (permutations(PermutationsConfig(count=50, seed=seed)) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(ConfigError, match=r"no more than \d+ permutations with distance 9 were found; lower"):
        permutations(PermutationsConfig(count=20, distance=9))
    with pytest.raises(ValueError, match="362,880 permutations; 400000 are too many"):
        PermutationsConfig(count=400_000)
