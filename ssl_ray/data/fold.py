"""A fold over label files: a pure function of one file's columns, partial results combined in file order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pyarrow as pa

from ssl_ray.artifacts import PseudoLabels
from ssl_ray.errors import StorageError
from ssl_ray.filesystems import patient, resolve
from ssl_ray.label_files import LabelFile
from ssl_ray.machine import usable_cores
from ssl_ray.paths import is_local
from ssl_ray.storage import Folder

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
    return fold_files(labels.labels, labels.files, columns, function, combine, initial, labels.read)


WINDOW = 256
"""Label files that are read at a time."""


def fold_rows(
    folder: Folder,
    files: Sequence[LabelFile],
    columns: Sequence[str],
    function: Callable[[pa.Table], Partial],
    combine: Callable[[Partial, Partial], Partial],
    initial: Partial,
    num_rows: int | None = None,
) -> Partial:
    """A fold that does not ask which file a row stands in: many small files are read as one table, by Arrow itself.

    In the order of the files, WINDOW of them at a time, a few windows side by side.

    Args:
        num_rows: total number of rows in all files, if it is known.

    Raises:
        DamagedError: a file cannot be read or holds other columns, or rows are missing.
    """
    if not files:
        return initial
    filesystem, base = resolve(folder.path)
    schema = files[0].read(folder, columns).schema
    read_rows = 0
    local = is_local(folder.path)
    import pyarrow.dataset as pads  # which imports pandas

    # One thread a window is faster than Arrow's own threads, which take turns at opening small files.
    options = pads.ParquetFragmentScanOptions(pre_buffer=not local, page_checksum_verification=True)
    format = pads.ParquetFileFormat(default_fragment_scan_options=options)

    def read(window: Sequence[LabelFile]) -> tuple[Partial, int]:
        try:
            table = read_window(window)
            if any(column.null_count for column in table.columns):  # Arrow returns nulls for a column that a file lacks
                raise pa.ArrowInvalid("nulls")
        except (pa.ArrowException, OSError, StorageError):
            for file in window:  # one by one, to name the damaged file
                file.read(folder, columns, schema)
            raise
        return function(table), len(table)

    def read_window(window: Sequence[LabelFile]) -> pa.Table:
        paths = [f"{base}/{file.name}" for file in window]
        # The schema is given: else every file would be opened to find it out.
        found = pads.dataset(paths, schema=schema, format=format, filesystem=filesystem)
        return patient(folder.path, lambda: found.to_table(columns=list(columns), use_threads=not local))

    threads, result = usable_cores() if local else 4, initial
    windows = [files[start : start + WINDOW] for start in range(0, len(files), WINDOW)]
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(windows), 4 * threads):
            for part, count in pool.map(read, windows[start : start + 4 * threads]):
                result, read_rows = combine(result, part), read_rows + count
    if num_rows is not None and read_rows != num_rows:
        for file in files:
            file.read(folder, columns, schema)
        raise folder.damaged("*.parquet", f"the files hold {read_rows:,} rows together, and {num_rows:,} were written")
    return result


def fold_files(
    folder: Folder,
    files: Sequence[LabelFile],
    columns: Sequence[str],
    function: Callable[[LabelFile, pa.Table], Part],
    combine: Callable[[Whole, Part], Whole],
    initial: Whole,
    reader: Callable[[LabelFile, list[str]], pa.Table] | None = None,
) -> Whole:
    """As `fold`, over files that are not an artifact yet. Reads only the named columns; a few files at a time.

    The order of the combination is that of the files, whatever finishes first, so that float sums are reproducible.

    Args:
        reader: returns some columns of a file; None: `LabelFile.read`.
    """

    def read(file: LabelFile) -> pa.Table:
        return reader(file, list(columns)) if reader is not None else file.read(folder, columns)

    result, threads = initial, 4 if is_local(folder.path) else 32  # a server is waited for, a disk is not
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(files), 8 * threads):
            window = files[start : start + 8 * threads]
            for partial in pool.map(lambda file: function(file, read(file)), window):
                result = combine(result, partial)
    return result
