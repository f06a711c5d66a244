"""Reading shards: from manifest rows to encoded bytes to pixels. No Ray here; actors and workers call this."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ssl_ray.artifacts import Corpus, Shard
from ssl_ray.data.sources.columns import column_of, find_column, parquet_errors
from ssl_ray.errors import SourceError
from ssl_ray.filesystems import explained, file_info, patient, resolve
from ssl_ray.machine import check_pixels
from ssl_ray.paths import is_local
from ssl_ray.settings.views import Preprocess
from ssl_ray.views.channels import Decoding
from ssl_ray.views.decode import DEFAULT, decoded, whole

GAP = 256 * 1024
"""Bytes between two members of a tar file that are read along rather than asked for separately."""

RUN = 64 * 2**20
"""Bytes of one read of a tar file at most."""


@dataclass(frozen=True)
class Unreadable:
    """Stands where an image file used to be: it was deleted or changed since it was listed."""

    reason: str
    data: bytes | None = None  # content of the file now


Encoded = bytes | Unreadable

DELETED = "was deleted since it was listed"


def as_found(item: Encoded) -> Encoded:
    """Return the content of a file as it is now, even if it was changed since it was listed."""
    return item.data if isinstance(item, Unreadable) and item.data is not None else item


def read_encoded(corpus: Corpus, shard: Shard, rows: np.ndarray, pool: Executor | None = None) -> list[bytes]:
    """The encoded images of some rows of a shard, in the order of `rows` (ascending).

    Raises:
        SourceError: a file was changed or deleted since it was listed.
    """
    manifest = manifest_rows(corpus, shard, rows)
    found = read_rows(manifest, shard.format, shard.image_column, pool)
    data = [item for item in found if isinstance(item, bytes)]
    if len(data) < len(found):
        position, bad = next((i, item) for i, item in enumerate(found) if isinstance(item, Unreadable))
        raise SourceError(f"{manifest['path'][position]} {bad.reason}; compute the stage images anew with --rerun images")
    return data


def manifest_rows(corpus: Corpus, shard: Shard, rows: np.ndarray) -> pa.Table:
    """What reading some rows of a shard takes: where each image lies, and how its file looked when it was listed."""
    manifest = corpus.rows(shard.shard, ["path", "file_row", "offset", "length", "size", "mtime"])
    if len(rows) != shard.num_rows:
        manifest = manifest.take(pa.array(rows))
    # Sample pixels lie inside the corpus folder and are named relative to it, so that a root can be moved.
    paths = [corpus.folder.file(path) if path.startswith("pixels/") else path for path in manifest["path"].to_pylist()]
    return manifest.set_column(manifest.schema.get_field_index("path"), "path", pa.array(paths, pa.string()))


def read_rows(manifest: pa.Table, format: str, image_column: str, pool: Executor | None = None) -> list[Encoded]:
    """The encoded images of manifest rows.

    Raises:
        SourceError: a Parquet or tar file was changed or deleted since it was listed.
    """
    columns = {name: manifest[name].to_pylist() for name in ("path", "size", "mtime")}
    if format == "folder":
        run: Callable[..., object] = pool.map if pool is not None else map
        return list(run(_read_file, *columns.values()))  # type: ignore[call-overload]
    data: list[Encoded] = [b""] * len(manifest)
    by_file: dict[str, list[int]] = defaultdict(list)
    file_row = manifest["file_row"].to_numpy()
    for position, path in enumerate(columns["path"]):
        if file_row[position] < 0:  # the image is a file of its own, whose path was in a Parquet file
            data[position] = _read_file(path, columns["size"][position], columns["mtime"][position])
        else:
            by_file[path].append(position)
    for path, positions in by_file.items():
        _check_file(path, columns["size"][positions[0]], columns["mtime"][positions[0]])
        if format == "tar":
            offset, length = manifest["offset"].to_numpy()[positions], manifest["length"].to_numpy()[positions]
            read = _read_tar(path, offset, length)
        else:
            wanted = file_row[positions]
            read = patient(path, partial(_read_parquet, path, wanted, image_column))
        for position, value in zip(positions, read, strict=True):
            data[position] = value
    return data


def decoding_of(corpus: Corpus) -> Decoding:
    """Return the settings that decode the pictures of a corpus, from its record."""
    return Decoding.model_validate(
        {name: corpus.record.config[name] for name in Decoding.model_fields if name in corpus.record.config}
    )


def decode_all(
    data: Sequence[Encoded],
    preprocess: Preprocess,
    pool: Executor | None = None,
    sizes: np.ndarray | None = None,
    *,
    decoding: Decoding = DEFAULT,
) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """Decode and bring to size.

    Args:
        sizes: int32 [n, 2], to be filled with the width and height that the images came with.

    Returns:
        uint8 [n, size, size, 3], and (position, reason) of those that cannot be decoded; their pixels are zero.
    """
    check_pixels(len(data), preprocess.size, "scale.label_batch or preprocess.size")
    images = np.zeros((len(data), preprocess.size, preprocess.size, 3), np.uint8)
    failures: list[tuple[int, str]] = []

    def one(position: int) -> None:
        item = data[position]
        if isinstance(item, Unreadable):
            failures.append((position, item.reason))
            return
        try:
            with decoded(item, decoding) as image:
                if sizes is not None:
                    sizes[position] = image.size
                images[position] = whole(image, preprocess)
        except ValueError as error:
            failures.append((position, str(error)))

    def some(positions: range) -> None:
        for position in positions:
            one(position)

    if pool is None:
        some(range(len(data)))
    else:  # a few images a task: the queue of a pool costs as much as a small image
        for _ in pool.map(some, [range(i, min(i + 16, len(data))) for i in range(0, len(data), 16)]):
            pass
    return images, sorted(failures)


def _read_file(path: str, size: int, mtime: int) -> Encoded:
    try:
        data, changed = _local_file(path) if is_local(path) else _remote_file(path)
    except FileNotFoundError:
        return Unreadable(DELETED)
    except OSError as error:
        raise explained(path, error) from None
    if len(data) != size:
        return Unreadable(f"changed since it was listed ({size} bytes then, {len(data)} now)", data)
    if mtime >= 0 and changed >= 0 and changed // 10**9 != mtime // 10**9:
        return Unreadable("changed since it was listed (written anew, as large as before)", data)
    return data


def _local_file(path: str) -> tuple[bytes, int]:
    with open(resolve(path)[1], "rb") as stream:
        return stream.read(), os.fstat(stream.fileno()).st_mtime_ns


def _remote_file(path: str) -> tuple[bytes, int]:
    filesystem, inside = resolve(path)

    def read() -> tuple[bytes, int]:
        with filesystem.open_input_stream(inside) as stream:
            return bytes(stream.read()), _last_modified(stream.metadata())

    return patient(path, read)


def _last_modified(metadata: dict[str, bytes] | None) -> int:
    """ns since the epoch from what came with the object, without another request; -1 if it does not say."""
    text = (metadata or {}).get("Last-Modified", b"").decode()
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return -1
    return int(moment.replace(tzinfo=moment.tzinfo or timezone.utc).timestamp()) * 10**9


def _check_file(path: str, size: int, mtime: int) -> None:
    info = file_info(path)
    if info.size is None:
        raise SourceError(f"{path} was deleted since it was listed; compute the stage images anew with --rerun images")
    rewritten = mtime >= 0 and info.mtime_ns is not None and info.mtime_ns // 10**9 != mtime // 10**9
    if info.size != size or rewritten:
        raise SourceError(
            f"{path} changed since it was listed ({size} bytes then, {info.size} now); compute the stage images anew with "
            "--rerun images"
        )


def _read_parquet(path: str, wanted: np.ndarray, column: str) -> list[bytes]:
    """Rows of a Parquet file. Only the row groups that hold one of them are read, a few hundred rows at a time."""
    filesystem, inside = resolve(path)
    data: list[bytes] = [b""] * len(wanted)
    with parquet_errors(path), pq.ParquetFile(inside, filesystem=filesystem, buffer_size=4 * 2**20) as file:
        found = find_column(file.schema_arrow, column, path)
        if found is None:
            raise SourceError(f"{path} has no column {column!r} any more; compute the stage images anew with --rerun images")
        begin = 0
        for group in range(file.metadata.num_row_groups):
            end = begin + file.metadata.row_group(group).num_rows
            last = int(wanted[(wanted >= begin) & (wanted < end)].max(initial=-1))
            batches = file.iter_batches(512, row_groups=[group], columns=[column]) if last >= 0 else ()
            for batch in batches:
                hit = np.flatnonzero((wanted >= begin) & (wanted < begin + len(batch)))
                if len(hit):
                    picked = column_of(batch, found[0]).take(pa.array(wanted[hit] - begin))
                    for index, value in zip(hit, picked.to_pylist(), strict=True):
                        data[index] = value or b""
                begin += len(batch)
                if begin > last:
                    break
            begin = end
    return data


def _read_tar(path: str, offset: np.ndarray, length: np.ndarray) -> list[bytes]:
    """Members of a tar file, by where they stand; neighbours come with one read."""
    filesystem, inside = resolve(path)
    data: list[bytes] = [b""] * len(offset)
    order = np.argsort(offset, kind="stable")
    start = 0
    while start < len(order):
        stop = start + 1
        first, last = int(offset[order[start]]), int(offset[order[start]] + length[order[start]])
        while (
            stop < len(order) and offset[order[stop]] - last <= GAP and offset[order[stop]] + length[order[stop]] - first <= RUN
        ):
            last = max(last, int(offset[order[stop]] + length[order[stop]]))
            stop += 1

        def read(first: int = first, last: int = last) -> bytes:
            with filesystem.open_input_file(inside) as file:
                return bytes(file.read_at(last - first, first))

        block = patient(path, read)
        for index in order[start:stop]:
            begin = int(offset[index]) - first
            data[index] = block[begin : begin + int(length[index])]
        start = stop
    return data
