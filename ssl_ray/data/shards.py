"""Reading shards: from manifest rows to encoded bytes to pixels. No Ray here; actors and workers call this."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ssl_ray.artifacts import Corpus, Shard
from ssl_ray.errors import SourceError
from ssl_ray.storage import resolve
from ssl_ray.views.decode import Preprocess, open_rgb, whole


def read_encoded(corpus: Corpus, shard: Shard, rows: np.ndarray, pool: Executor | None = None) -> list[bytes]:
    """The encoded images of some rows of a shard, in the order of `rows` (ascending).

    Raises:
        SourceError: a file was changed or deleted since it was listed.
    """
    manifest = corpus.rows(shard.shard, ["path", "file_row", "size"])
    if len(rows) != shard.num_rows:
        manifest = manifest.take(pa.array(rows))
    paths = [_absolute(corpus, path) for path in manifest["path"].to_pylist()]
    sizes = manifest["size"].to_pylist()
    if shard.format == "folder":
        run = pool.map if pool is not None else map
        return list(run(_read_file, paths, sizes))
    return _read_parquet(paths, manifest["file_row"].to_numpy(), sizes, shard.image_column)


def decode_all(
    data: Sequence[bytes], preprocess: Preprocess, pool: Executor | None = None
) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """Decode and bring to size.

    Returns:
        uint8 [n, size, size, 3], and (position, reason) of those that cannot be decoded; their pixels are zero.
    """
    images = np.zeros((len(data), preprocess.size, preprocess.size, 3), np.uint8)
    failures: list[tuple[int, str]] = []

    def one(position: int) -> None:
        try:
            images[position] = whole(open_rgb(data[position]), preprocess)
        except ValueError as error:
            failures.append((position, str(error)))

    run: Callable[..., object] = pool.map if pool is not None else map
    for _ in run(one, range(len(data))):  # type: ignore[attr-defined]
        pass
    return images, sorted(failures)


def _absolute(corpus: Corpus, path: str) -> str:
    """Sample pixels lie inside the corpus folder and are named relative to it, so that a root can be moved."""
    return corpus.folder.file(path) if path.startswith("pixels/") else path


def _read_file(path: str, size: int) -> bytes:
    filesystem, inside = resolve(path)
    try:
        with filesystem.open_input_stream(inside) as stream:
            data = stream.read()
    except FileNotFoundError:
        raise SourceError(
            f"{path} was deleted since it was listed; compute the stage images anew with --rerun images"
        ) from None
    if len(data) != size:
        raise _changed(path, size, len(data))
    return data


def _read_parquet(paths: list[str], file_rows: np.ndarray, sizes: list[int], column: str) -> list[bytes]:
    by_file: dict[str, list[int]] = defaultdict(list)
    for position, path in enumerate(paths):
        by_file[path].append(position)
    data: list[bytes] = [b""] * len(paths)
    name, _, inner = column.partition(".")
    for path, positions in by_file.items():
        filesystem, inside = resolve(path)
        actual = filesystem.get_file_info(inside).size
        if actual != sizes[positions[0]]:
            raise _changed(path, sizes[positions[0]], actual)
        wanted = file_rows[positions]
        with pq.ParquetFile(inside, filesystem=filesystem) as file:
            begin = 0
            for group in range(file.metadata.num_row_groups):
                end = begin + file.metadata.row_group(group).num_rows
                hit = np.flatnonzero((wanted >= begin) & (wanted < end))
                if len(hit):
                    images = file.read_row_group(group, columns=[column])[name].combine_chunks()
                    if inner:
                        images = images.field(inner) if isinstance(images, pa.StructArray) else images.chunk(0).field(inner)
                    picked = images.take(pa.array(wanted[hit] - begin))
                    for index, value in zip(hit, picked.to_pylist(), strict=True):
                        data[positions[index]] = value or b""
                begin = end
    return data


def _changed(path: str, before: int, after: int | None) -> SourceError:
    return SourceError(
        f"{path} changed since it was listed ({before} bytes then, {after} now); compute the stage images anew with "
        "--rerun images"
    )
