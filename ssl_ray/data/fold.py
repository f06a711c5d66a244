"""A fold over label files: a pure function of one file's columns, partial results combined in file order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pyarrow as pa

from ssl_ray.artifacts import LabelFile, PseudoLabels
from ssl_ray.storage import Folder, is_local

Partial = TypeVar("Partial")


def fold(
    labels: PseudoLabels,
    columns: Sequence[str],
    function: Callable[[LabelFile, pa.Table], Partial],
    combine: Callable[[Partial, Partial], Partial],
    initial: Partial,
) -> Partial:
    """combine(...combine(initial, f(first))..., f(last)) over the files of a label set."""
    return fold_files(labels.labels, labels.files, columns, function, combine, initial)


def fold_files(
    folder: Folder,
    files: Sequence[LabelFile],
    columns: Sequence[str],
    function: Callable[[LabelFile, pa.Table], Partial],
    combine: Callable[[Partial, Partial], Partial],
    initial: Partial,
) -> Partial:
    """As `fold`, over files that are not an artifact yet. Reads only the named columns; a few files at a time.

    The order of the combination is that of the files, whatever finishes first, so that float sums are reproducible.
    """
    result, threads = initial, 4 if is_local(folder.path) else 32  # a server is waited for, a disk is not
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(files), 8 * threads):
            window = files[start : start + 8 * threads]
            for partial in pool.map(lambda file: function(file, folder.read_table(file.name, list(columns))), window):
                result = combine(result, partial)
    return result
