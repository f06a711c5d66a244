"""Images of a source, one row per image, in bounded memory, and rules for names that hold for all sources."""

from __future__ import annotations

import os
import posixpath
import tempfile
import unicodedata
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from ssl_ray.errors import SourceError
from ssl_ray.filesystems import file_info, resolve
from ssl_ray.paths import escaped as escaped
from ssl_ray.views.decode import SUFFIXES, missing_readers

GRAMMAR = (
    "folder/, path/*.parquet, wds:path/shard-{0000..0099}.tar, coco:instances.json@images/, voc:VOC2012/, sample:mnist5k, "
    "sample:fashion or sample:scenes, each path local or s3://"
)
LISTING_THREADS = 32
"""Requests to a file system at a time. They wait rather than compute, so there are more than cores."""

MISSING_READERS = missing_readers()
"""Command that installs the missing reader of a format, by suffix."""

IMAGE_SUFFIXES = tuple(suffix for suffix in SUFFIXES if suffix not in MISSING_READERS)

LEFTOVERS = frozenset(
    ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "$recycle.bin", "system volume information", "lost+found",
     "@eadir", "#recycle", "__pycache__")
)  # fmt: skip
"""Names, in lower case, of files and folders that systems create. Hidden names (`.DS_Store`, `._1.jpg`) count too."""

LEFTOVER = "hidden, or left behind by a system or an editor"
"""Reason for `Listing.drop`."""

ROWS = pa.schema(
    [
        ("image_id", pa.string()),
        ("path", pa.string()),
        ("file_row", pa.int64()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("size", pa.int64()),
        ("mtime", pa.int64()),
        ("class_name", pa.string()),
    ]
)
"""One row per image, as in the manifest (`schema.MANIFEST`), with the name of its class or null."""


class Spool:
    """A table to append to, which moves to a temporary file when it has more than `memory_rows` rows."""

    def __init__(self, schema: pa.Schema, memory_rows: int = 500_000):
        self.schema, self.num_rows = schema, 0
        self._memory_rows = memory_rows
        self._held: list[pa.Table] = []
        self._held_rows = 0
        self._file: str | None = None
        self._writer: Any = None

    def append(self, table: pa.Table) -> None:
        self._held.append(table)
        self._held_rows += table.num_rows
        self.num_rows += table.num_rows
        if self._held_rows > self._memory_rows:
            self._spill()

    def _spill(self) -> None:
        if self._writer is None:
            handle, self._file = tempfile.mkstemp(prefix="ssl_ray-listing-", suffix=".arrow")
            os.close(handle)
            weakref.finalize(self, _unlink, self._file)
            self._writer = pa.ipc.new_stream(self._file, self.schema)
        for table in self._held:
            self._writer.write_table(table)
        self._held, self._held_rows = [], 0

    def tables(self) -> Iterator[pa.Table]:
        """Yield the appended tables, in order."""
        if self._writer is not None:
            self._spill()
            self._writer.close()
            self._writer = None
        if self._file is not None:
            with pa.memory_map(self._file) as stream, pa.ipc.open_stream(stream) as reader:
                for batch in reader:
                    yield pa.Table.from_batches([batch])
        yield from self._held

    def table(self) -> pa.Table:
        """Return the whole table in memory, for labeled sources."""
        return pa.concat_tables([self.schema.empty_table(), *self.tables()]).combine_chunks()


def _unlink(path: str) -> None:
    if os.path.exists(path):
        os.unlink(path)


@dataclass
class Listing:
    """Images found in one source."""

    source: str
    format: str  # folder, parquet or tar: how bytes are read
    rows: Spool = field(default_factory=lambda: Spool(ROWS))
    image_column: str = ""
    dropped: Counter[str] = field(default_factory=Counter)  # number of unused files and images, by reason
    examples: dict[str, str] = field(default_factory=dict)  # first name for each reason
    categories: list[str] = field(default_factory=list)  # of boxes and masks; masks: by their values
    targets: dict[str, Callable[[], Any]] = field(default_factory=dict)  # image id -> its Boxes or Mask, where it has some

    def __len__(self) -> int:
        return self.rows.num_rows

    def drop(self, reason: str, name: str, count: int = 1) -> None:
        """Count a file or image that is not used; keep the first name for each reason as an example."""
        self.dropped[reason] += count
        if reason not in self.examples:
            self.examples[reason] = escaped(name)

    def drop_kind(self, name: str) -> None:
        """Count a file whose suffix is not that of an image: under its suffix, or as "others" if there are many suffixes."""
        suffix = posixpath.splitext(name)[1].lower()
        reason = f"not an image by its suffix ({escaped(suffix) or 'none'})"
        if suffix in MISSING_READERS:
            reason = f"a {suffix} picture, read after {MISSING_READERS[suffix]}"
        elif reason not in self.dropped and (len(suffix) > 12 or len(self.dropped) >= 12):
            reason = "not an image by its suffix (others)"
        self.drop(reason, name)

    def merge(self, other: Listing) -> None:
        """Append the listing of a part of the source."""
        for table in other.rows.tables():
            self.rows.append(table)
        for reason, count in other.dropped.items():
            self.drop(reason, other.examples[reason], count)


def rows(
    image_id: list[str],
    path: list[str],
    size: list[int],
    mtime: list[int],
    *,
    file_row: Iterable[int] | None = None,
    offset: list[int] | None = None,
    length: list[int] | None = None,
    class_name: list[str | None] | None = None,
) -> pa.Table:
    """Build a table of `ROWS`. Missing columns become -1 or null; class names are normalized (`composed`)."""
    none = [-1] * len(image_id)
    return pa.table(
        {
            "image_id": image_id,
            "path": path,
            "file_row": none if file_row is None else list(file_row),
            "offset": none if offset is None else offset,
            "length": none if length is None else length,
            "size": size,
            "mtime": mtime,
            "class_name": [None] * len(image_id) if class_name is None else [name and composed(name) for name in class_name],
        },
        schema=ROWS,
    )


def is_leftover(name: str) -> bool:
    """Return whether a path inside a source is hidden, or was created by a system or an editor.

    Args:
        name: of a file, folder or tar member, relative to its source, with `/` between its parts.
    """
    return any((part[:1] == "." and part not in (".", "..")) or part.lower() in LEFTOVERS for part in name.split("/"))


def composed(name: str) -> str:
    """Return a name in Unicode form NFC, so that names that look alike are equal, whichever system wrote them."""
    return unicodedata.normalize("NFC", name)


def mtime_ns(info: pafs.FileInfo) -> int:
    return -1 if info.mtime_ns is None else int(info.mtime_ns)


def prefix_of(source: str) -> str:
    """Return the prefix that makes a path inside the file system of a source a full path: "" or `s3://`."""
    return source.split("://", 1)[0] + "://" if "://" in source else ""


def require_folder(source: str, named: str | None = None) -> str:
    """Return the path of an existing folder inside its file system.

    Args:
        named: name of the folder in errors; None: the source.

    Raises:
        SourceError: it does not exist, or is a file.
    """
    kind = file_info(source).type
    named = named or source
    if kind == pafs.FileType.NotFound:
        advice = f"write wds:{source}" if source.endswith(".tar") else f"give {GRAMMAR}"
        raise SourceError(f"{named} does not exist; {advice}")
    if kind == pafs.FileType.File and source.endswith(".tar"):
        raise SourceError(f"{named} is a tar file; write wds:{source}")
    if kind != pafs.FileType.Directory:
        raise SourceError(f"{named} is a file; give {GRAMMAR}")
    return resolve(source)[1]
