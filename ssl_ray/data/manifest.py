"""From listings to shards: the manifest, written piece by piece, in bounded memory whatever the source."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ssl_ray.data.sources.listing import Listing
from ssl_ray.errors import SourceError
from ssl_ray.randomness import generator, seed_of
from ssl_ray.schema import MANIFEST, MANIFEST_SHARDS, NO_LABEL, SHARDS
from ssl_ray.storage import Folder

BUCKET_ROWS = 250_000
"""Images that are shuffled at a time."""


@dataclass
class Part:
    """Images of one split from one source.

    With labels, everything is in memory: positions in the listing, labels, hidden labels. Without (`index` is None), all
    images of the listing are streamed.
    """

    split: str
    role: str  # first part of the image ids, so that ids from different sources cannot meet
    listing: Listing
    index: np.ndarray | None = None
    label: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    truth: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))

    def __len__(self) -> int:
        return len(self.listing) if self.index is None else len(self.index)

    def tables(self) -> Iterator[pa.Table]:
        """Manifest rows in the order of the listing, piece by piece."""
        if self.index is not None:
            if len(self.index):
                rows = self.listing.rows.table().take(pa.array(self.index))
                yield self._finish(rows, self.label, self.truth)
            return
        for rows in self.listing.rows.tables():
            none = np.full(len(rows), NO_LABEL, np.int32)
            yield self._finish(rows, none, none)

    def _finish(self, rows: pa.Table, label: np.ndarray, truth: np.ndarray) -> pa.Table:
        ids = [f"{self.role}/{name}" for name in rows["image_id"].to_pylist()]
        columns = {name: rows[name] for name in ("path", "file_row", "offset", "length", "size", "mtime")}
        return pa.table({"image_id": ids, "label": label, "truth": truth, **columns}).select(MANIFEST.names).cast(MANIFEST)

    @property
    def shuffled(self) -> bool:
        """Single files are dealt to shards at random, so that no shard holds one class only. A Parquet or tar file is read
        in ranges of its rows instead."""
        return self.listing.format == "folder" or self.listing.source.startswith("sample (")


class ManifestWriter:
    """Writes shards as they come; `close` writes the list of shards, last."""

    def __init__(self, out: Folder):
        self._out = out
        self._shards: list[dict[str, Any]] = []
        self._sink: Any = None
        self._writer: Any = None

    @property
    def num_shards(self) -> int:
        """So far: the number of the next one."""
        return len(self._shards)

    def add(self, rows: pa.Table, part: Part) -> None:
        if self._writer is None:
            self._sink = pa.BufferOutputStream()
            self._writer = pq.ParquetWriter(self._sink, MANIFEST, compression="zstd", write_page_checksum=True)
        self._writer.write_table(rows, row_group_size=len(rows))
        self._shards.append(
            {
                "shard": len(self._shards),
                "split": part.split,
                "format": part.listing.format,
                "num_rows": len(rows),
                "image_column": part.listing.image_column,
            }
        )
        if len(self._shards) % MANIFEST_SHARDS == 0:
            self._flush()

    def _flush(self) -> None:
        if self._writer is not None:
            self._writer.close()
            number = (len(self._shards) - 1) // MANIFEST_SHARDS
            self._out.write_bytes(f"manifest/{number:06d}.parquet", self._sink.getvalue().to_pybytes())
            self._writer = self._sink = None

    def close(self) -> None:
        self._flush()
        self._out.write_table("shards.parquet", pa.Table.from_pylist(self._shards, SHARDS))


def shards_of(part: Part, shard_rows: int, seed: int) -> Iterator[pa.Table]:
    """The images of a part, cut into shards of at most `shard_rows`."""
    if part.shuffled:
        for bucket, rows in enumerate(_buckets(part, seed)):
            # The order before the draw is that of the ids: whatever order the listing came in, the shards are the same.
            rows = rows.sort_by("image_id") if part.index is None else rows
            address: tuple[int | str, ...] = (seed, "shards", part.split, part.role)
            order = generator(*address, *([bucket] if bucket else [])).permutation(len(rows))
            for start in range(0, len(order), shard_rows):
                yield rows.take(pa.array(np.sort(order[start : start + shard_rows])))
        return
    # Ranges of rows; a shard does not reach over the end of a file, so that one reader opens one file.
    waiting: list[pa.Table] = []
    held = 0
    for rows in part.tables():
        for piece in _by_file(rows):
            same = bool(waiting) and waiting[-1]["path"][0].equals(piece["path"][0])
            if waiting and not same and held >= shard_rows // 2:
                yield from _cut(pa.concat_tables(waiting), shard_rows)
                waiting, held = [], 0
            waiting.append(piece)
            held += len(piece)
    if waiting:
        yield from _cut(pa.concat_tables(waiting), shard_rows)


def _cut(rows: pa.Table, shard_rows: int) -> Iterator[pa.Table]:
    """Pieces of nearly the same size."""
    count = -(-len(rows) // shard_rows)
    edges = [round(len(rows) * i / count) for i in range(count + 1)]
    for start, stop in pairwise(edges):
        yield rows.slice(start, stop - start)


def _by_file(rows: pa.Table) -> Iterator[pa.Table]:
    paths = rows["path"].combine_chunks().dictionary_encode()
    codes = (paths.chunk(0) if isinstance(paths, pa.ChunkedArray) else paths).indices.to_numpy()
    edges = [0, *(np.flatnonzero(np.diff(codes)) + 1), len(codes)]
    for start, stop in pairwise(edges):
        if stop > start:
            yield rows.slice(start, stop - start)


def _buckets(part: Part, seed: int) -> Iterator[pa.Table]:
    """The rows, dealt at random into pieces that fit into memory: by a hash of the id, through temporary files."""
    count = max(1, -(-len(part) // BUCKET_ROWS))
    if count == 1 or part.index is not None:
        yield pa.concat_tables([MANIFEST.empty_table(), *part.tables()])
        return
    with tempfile.TemporaryDirectory(prefix="ssl_ray-shuffle-") as folder:
        names = [str(Path(folder) / f"{bucket}.arrow") for bucket in range(count)]
        writers = [pa.ipc.new_stream(name, MANIFEST) for name in names]
        key = seed_of(seed, "buckets")
        for rows in part.tables():
            bucket = (hashes(rows["image_id"]) ^ np.uint64(key)) % np.uint64(count)
            for number in np.unique(bucket):
                writers[number].write_table(rows.take(pa.array(np.flatnonzero(bucket == number))))
        for writer in writers:
            writer.close()
        for name in names:
            with pa.ipc.open_stream(name) as reader:
                yield reader.read_all()


def hashes(values: pa.ChunkedArray) -> np.ndarray:
    """uint64 [n], the same for the same strings everywhere."""
    from pandas.util import hash_array  # imported here, because importing pandas takes half a second

    found: np.ndarray = hash_array(np.asarray(values.to_pylist(), dtype=object), categorize=False)
    return found


def check_unique(parts: list[Part]) -> None:
    """Eight bytes an image, not its id: 100 million images take 800 MB here for a moment.

    Raises:
        SourceError: two images with one id, or one image in two splits; both are named.
    """
    by_listing: dict[int, list[Part]] = {}
    for part in parts:
        by_listing.setdefault(id(part.listing), []).append(part)
    for group in by_listing.values():
        marks = np.concatenate(
            [hashes(rows["image_id"]) for part in group for rows in part.tables()] or [np.empty(0, np.uint64)]
        )
        marks.sort()
        twice = np.unique(marks[1:][marks[1:] == marks[:-1]])
        if len(twice):
            _name_clash(group, twice)
    known: dict[tuple[str, int, int], tuple[str, int]] = {}
    for part in sorted(parts, key=lambda part: part.index is None):  # what is in memory first
        for rows in part.tables():
            places = zip(*(rows[name].to_pylist() for name in ("path", "file_row", "offset")), strict=True)
            if part.index is not None:
                for place in places:
                    split, listing = known.setdefault(place, (part.split, id(part.listing)))
                    if split != part.split and listing != id(part.listing):
                        raise _overlap(place, split, part.split)
            else:
                for place in places:
                    if place in known:
                        raise _overlap(place, known[place][0], part.split)


def _overlap(place: tuple[str, int, int], first: str, second: str) -> SourceError:
    return SourceError(
        f"{place[0]} stands in {first} and in {second}; give sources that do not overlap, or a model is tested on what it saw"
    )


def _name_clash(parts: list[Part], twice: np.ndarray) -> None:
    seen: dict[str, str] = {}
    for part in parts:
        hint = ", or number the rows with --set images.columns.id=none" if ".parquet" in part.listing.source else ""
        for rows in part.tables():
            hit = np.flatnonzero(np.isin(hashes(rows["image_id"]), twice))
            for row in rows.take(pa.array(hit)).to_pylist():
                where = row["path"] + (f" row {row['file_row']}" if row["file_row"] >= 0 else "")
                name = row["image_id"]
                if name in seen:
                    raise SourceError(f"two images have the id {name}: {seen[name]} and {where}; make the ids unique{hint}")
                seen[name] = where
