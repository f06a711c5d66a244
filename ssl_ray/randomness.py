"""Addressed randomness: a draw depends on its address, never on what was drawn before it.

An address is a tuple such as `(seed, "teacher", "views", step)`. The same address gives the same numbers on any number
of workers, in any order of blocks and after any restart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def seed_of(*address: int | str) -> int:
    """A 64-bit seed for an address; different addresses give independent streams."""
    text = "\x1f".join(str(part) for part in address)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def generator(*address: int | str) -> np.random.Generator:
    """A NumPy generator (Philox, counter-based) for an address."""
    return np.random.Generator(np.random.Philox(key=seed_of(*address)))


class BatchDraw:
    """Random parameters for a part of a global batch.

    Draws are made for the whole batch and cut to the `rows` of this worker, so that an image gets the same parameters
    whichever worker holds it. They are a few numbers an image: cheap beside the image itself.
    """

    def __init__(self, address: Sequence[int | str], total: int, rows: np.ndarray | None = None):
        """
        Args:
            address: where the draws come from.
            total: images in the global batch.
            rows: positions in the global batch that this worker holds, int64 [n]; all of them by default.
        """
        self._generator = generator(*address)
        self._total = total
        self._rows = rows
        self.count = total if rows is None else len(rows)

    def uniform(self, *shape: int) -> np.ndarray:
        """float32 [n, *shape] in [0, 1)."""
        values = self._generator.random((self._total, *shape), dtype=np.float32)
        return values if self._rows is None else values[self._rows]

    def integers(self, high: int, *shape: int) -> np.ndarray:
        """int64 [n, *shape] in [0, high)."""
        values = self._generator.integers(0, high, size=(self._total, *shape))
        return values if self._rows is None else values[self._rows]


def held_lanes(lanes: int, rank: int, workers: int) -> range:
    """Return the lanes that a worker holds. Where the workers do not divide the lanes, some hold one more than others."""
    return range(rank * lanes // workers, (rank + 1) * lanes // workers)
