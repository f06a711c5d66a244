from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from ssl_ray.randomness import generator
from ssl_ray.subset import num_spare, proportional, sparing, stratified


def of_sizes(*sizes: int) -> np.ndarray:
    return np.repeat(np.arange(len(sizes)), sizes)


def test_a_smaller_draw_is_part_of_a_larger_one() -> None:
    labels = of_sizes(*[40] * 5)
    small, large = (set(stratified(labels, n, generator(0, "x"))) for n in (10, 50))
    assert small < large
    assert np.bincount(labels[sorted(small)]).tolist() == [2] * 5


@pytest.mark.parametrize(
    ("sizes", "count", "taken"),
    [
        ((100, 12), 22, [20, 2]),  # 19.6 and 2.4
        ((100, 10), 22, [20, 2]),
        ((100, 12, 1), 22, [20, 2, 0]),  # a class of one keeps it
        ((1000, 2), 10, [9, 1]),  # 9.98 and 0.02: at least one
        ((30, 30, 30), 2, [1, 1, 0]),  # too few for all: the first of equal remainders
        ((60, 30, 10), 2, [1, 1, 0]),
        ((3, 3), 4, [2, 2]),  # all that can be taken
        ((1, 1, 5), 4, [0, 0, 4]),
        ((2, 2, 50), 51, [1, 1, 49]),
        ((7,), 3, [3]),
        ((4, 4), 0, [0, 0]),
    ],
)
def test_a_proportional_draw_follows_the_shares(sizes: tuple[int, ...], count: int, taken: list[int]) -> None:
    labels = of_sizes(*sizes)
    drawn = proportional(labels, count, generator(0, "x"))
    assert np.bincount(labels[drawn], minlength=len(sizes)).tolist() == taken


@pytest.mark.parametrize("seed", range(20))
def test_a_proportional_draw_takes_any_count_that_spares_every_class(seed: int) -> None:
    draw = np.random.default_rng(seed)
    labels = draw.permutation(of_sizes(*(draw.geometric(0.05, 12))))
    for count in draw.integers(0, num_spare(labels) + 1, 5):
        drawn = proportional(labels, int(count), generator(seed, "x"))
        assert len(set(drawn)) == count
        assert len(np.unique(np.delete(labels, drawn))) == 12


@pytest.mark.parametrize("count", [0, 1, 5, 12, 50, 195])
def test_equal_classes_give_what_a_stratified_draw_gives(count: int) -> None:
    labels = np.random.default_rng(0).permutation(of_sizes(*[40] * 5))
    same = [f(labels, count, generator(3, "x")).tolist() for f in (stratified, proportional)]
    assert same[0] == same[1]


SHOWN = [{0}, {0, 1}, {2}, {0, 2}, set(), {0}]


def test_a_sparing_draw_leaves_every_class_an_image() -> None:
    for seed in range(20):
        drawn = sparing(SHOWN, 3, np.random.default_rng(seed).permutation(6))
        rest = Counter(c for position in set(range(6)) - set(drawn.tolist()) for c in SHOWN[position])
        assert set(rest) == {0, 1, 2}


def test_a_sparing_draw_keeps_the_order_where_no_class_is_at_stake() -> None:
    assert sparing([{0}] * 6, 3, np.array([4, 2, 5, 0, 1, 3])).tolist() == [2, 4, 5]


def test_a_sparing_draw_gives_the_number_asked_for() -> None:
    assert sparing([{0}, {1}], 2, np.array([1, 0])).tolist() == [0, 1]
