from __future__ import annotations

import numpy as np

from ssl_ray.randomness import BatchDraw, generator, seed_of


def test_an_address_decides_alone() -> None:
    first = generator(1, "views", 7).random(4)
    generator(1, "views", 8).random(100)
    np.testing.assert_array_equal(first, generator(1, "views", 7).random(4))
    assert seed_of(1, "a") != seed_of(1, "b")
    assert seed_of(1, 23) != seed_of(12, 3), "parts must not run into each other"


def test_workers_draw_what_one_worker_draws() -> None:
    whole = BatchDraw((0, "x"), 10)
    parts = [BatchDraw((0, "x"), 10, np.arange(start, start + 5)) for start in (0, 5)]
    for shape in ((), (3,)):
        np.testing.assert_array_equal(whole.uniform(*shape), np.concatenate([part.uniform(*shape) for part in parts]))
    np.testing.assert_array_equal(whole.integers(9), np.concatenate([part.integers(9) for part in parts]))
