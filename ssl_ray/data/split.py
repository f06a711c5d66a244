"""Which labels are shown: stratified draws, the smaller part of the larger."""

from __future__ import annotations

import numpy as np


def stratified(labels: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
    """`count` positions, as equally many of every class as there are, in ascending order.

    Classes take turns in a drawn order, so that a smaller draw from the same generator is part of a larger one.
    """
    turns = []
    for label in np.unique(labels):
        members = draw.permutation(np.flatnonzero(labels == label))
        turns.append(np.stack([np.arange(len(members)), np.full(len(members), label), members]))
    order = np.concatenate(turns, axis=1)
    chosen = order[2, np.lexsort((order[1], order[0]))][:count]
    return np.sort(chosen)
