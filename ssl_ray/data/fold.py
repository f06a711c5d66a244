"""A fold over label files: a pure function of one file's columns, partial results combined in file order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pyarrow as pa

from ssl_ray.artifacts import LabelFile, PseudoLabels

Partial = TypeVar("Partial")


def fold(
    labels: PseudoLabels,
    columns: Sequence[str],
    function: Callable[[LabelFile, pa.Table], Partial],
    combine: Callable[[Partial, Partial], Partial],
    initial: Partial,
    threads: int = 4,
) -> Partial:
    """combine(...combine(initial, f(first))..., f(last)). Reads only the named columns; at most a few files at a time.

    The order of the combination is that of the files, whatever finishes first, so that float sums are reproducible.
    """
    result = initial
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(labels.files), 4 * threads):
            window = labels.files[start : start + 4 * threads]
            for partial in pool.map(lambda file: function(file, labels.read(file, list(columns))), window):
                result = combine(result, partial)
    return result
