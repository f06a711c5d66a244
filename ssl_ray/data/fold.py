"""A fold over label files: a pure function of one file's columns, partial results combined in file order."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pyarrow as pa
import pyarrow.dataset as pads

from ssl_ray.artifacts import LabelFile, PseudoLabels
from ssl_ray.storage import Folder, is_local, patient, resolve

Partial = TypeVar("Partial")
Part = TypeVar("Part")
Whole = TypeVar("Whole")


def fold(
    labels: PseudoLabels,
    columns: Sequence[str],
    function: Callable[[LabelFile, pa.Table], Partial],
    combine: Callable[[Partial, Partial], Partial],
    initial: Partial,
) -> Partial:
    """combine(...combine(initial, f(first))..., f(last)) over the files of a label set."""
    return fold_files(labels.labels, labels.files, columns, function, combine, initial)


WINDOW = 256
"""Label files that are read at a time."""


def fold_rows(
    folder: Folder,
    files: Sequence[LabelFile],
    columns: Sequence[str],
    function: Callable[[pa.Table], Partial],
    combine: Callable[[Partial, Partial], Partial],
    initial: Partial,
) -> Partial:
    """A fold that does not ask which file a row stands in: many small files are read as one table, by Arrow itself.

    In the order of the files, WINDOW of them at a time, a few windows side by side.
    """
    if not files:
        return initial
    filesystem, base = resolve(folder.path)
    schema = folder.read_table(files[0].name, list(columns)).schema
    local = is_local(folder.path)
    # One thread a window is faster than Arrow's own threads, which take turns at opening small files.
    options = pads.ParquetFragmentScanOptions(pre_buffer=not local)
    format = pads.ParquetFileFormat(default_fragment_scan_options=options)

    def read(window: Sequence[LabelFile]) -> Partial:
        paths = [f"{base}/{file.name}" for file in window]
        # The schema is given: else every file would be opened to find it out.
        found = pads.dataset(paths, schema=schema, format=format, filesystem=filesystem)
        return function(patient(folder.path, lambda: found.to_table(columns=list(columns), use_threads=not local)))

    threads, result = (os.cpu_count() or 1) if local else 4, initial
    windows = [files[start : start + WINDOW] for start in range(0, len(files), WINDOW)]
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(windows), 4 * threads):
            for part in pool.map(read, windows[start : start + 4 * threads]):
                result = combine(result, part)
    return result


def fold_files(
    folder: Folder,
    files: Sequence[LabelFile],
    columns: Sequence[str],
    function: Callable[[LabelFile, pa.Table], Part],
    combine: Callable[[Whole, Part], Whole],
    initial: Whole,
) -> Whole:
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
