"""Encoded images in a column of Parquet files."""

from __future__ import annotations

import fnmatch
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from pydantic import Field

from ssl_ray.config import Config
from ssl_ray.data.sources.limit import first
from ssl_ray.data.sources.listing import GRAMMAR, LISTING_THREADS, Listing, mtime_ns, prefix_of, rows
from ssl_ray.errors import SourceError
from ssl_ray.storage import file_info, patient, resolve


class ColumnsConfig(Config):
    """Column names of Parquet sources."""

    image: str | None = None  # bytes, or a struct with a field `bytes`; None: image, image_bytes, bytes, jpg or png
    label: str = Field(default="label", min_length=1)
    id: str | None = None  # None: id or image_id if there, else file and row


def list_parquet(source: str, columns: ColumnsConfig, *, labeled: bool) -> Listing:
    """Raises:
    SourceError: no such file, not Parquet, no image column, or no labels where they are wanted.
    """
    listing = Listing(source, "parquet")
    files = matching(source)
    files = files if labeled else list(first(source, files))
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        for part in pool.map(lambda entry: _list_file(entry, source, columns, labeled), files):
            if listing.image_column not in ("", part.image_column):
                raise SourceError(
                    f"{source}: the files name their image column differently ({listing.image_column}, {part.image_column}); "
                    "give them one by one"
                )
            listing.image_column = part.image_column
            listing.merge(part)
    if not len(listing):
        raise SourceError(f"{source} holds no rows; give {GRAMMAR}")
    return listing


def matching(source: str) -> list[pafs.FileInfo]:
    """Files that a pattern names, in order of their names; `*` and `?` stand in the last part of the path."""
    filesystem, pattern = resolve(source)
    if (exact := file_info(source)).type == pafs.FileType.File:
        return [exact]
    last = pattern.rsplit("/", 1)[-1]
    selector = pafs.FileSelector(pattern.rsplit("/", 1)[0], allow_not_found=True)
    found = patient(source, lambda: filesystem.get_file_info(selector))
    files = [entry for entry in found if entry.type == pafs.FileType.File and fnmatch.fnmatchcase(entry.base_name, last)]
    if not files:
        raise SourceError(f"{source}: no such file; give {GRAMMAR}")
    return sorted(files, key=lambda entry: entry.path)


def _list_file(entry: pafs.FileInfo, source: str, columns: ColumnsConfig, labeled: bool) -> Listing:
    filesystem, path = resolve(source)[0], prefix_of(source) + entry.path
    part = Listing(source, "parquet")

    def read() -> tuple[pa.Table | None, int, str | None]:
        with pq.ParquetFile(entry.path, filesystem=filesystem) as file:
            schema = file.schema_arrow
            part.image_column = image_column(schema, columns.image, path)
            identity = columns.id or next((name for name in ("image_id", "id") if name in schema.names), None)
            wanted = ({columns.label} if labeled else set()) | ({identity} if identity else set())
            missing = sorted(wanted - set(schema.names))
            if missing:
                raise SourceError(
                    f"{path} has no column {missing[0]!r}; its columns are {', '.join(schema.names)}; "
                    "name the right one with --set images.columns.label=... or images.columns.id=..."
                )
            return (file.read(columns=sorted(wanted)) if wanted else None), file.metadata.num_rows, identity

    try:
        table, count, identity = patient(path, read)
    except pa.ArrowInvalid as error:
        raise SourceError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}; take it out") from None
    if table is not None and identity:
        values = table[identity].to_pylist()
        if any(value is None for value in values):
            raise SourceError(f"{path} has rows without an id in column {identity!r}; drop them, or name another column")
        ids = [str(value) for value in values]
    else:
        name = entry.base_name
        ids = [f"{name}:{row}" for row in range(count)]
    classes: list[str | None] | None = None
    if table is not None and labeled:
        labels = table[columns.label].to_pylist()
        if any(value is None for value in labels):
            raise SourceError(f"{path} has rows without a label in column {columns.label!r}; drop them")
        classes = [str(value) for value in labels]
    part.rows.append(
        rows(
            ids,
            [path] * count,
            [int(entry.size)] * count,
            [mtime_ns(entry)] * count,
            file_row=range(count),
            class_name=classes,
        )
    )
    return part


def image_column(schema: pa.Schema, name: str | None, path: str) -> str:
    """The column of encoded images: `name`, or the first usual name; `image.bytes` for a struct."""
    candidates = [name] if name else ["image", "image_bytes", "bytes", "jpg", "png"]
    for candidate in candidates:
        if candidate not in schema.names:
            continue
        kind = schema.field(candidate).type
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            return candidate
        if pa.types.is_struct(kind) and any(kind.field(i).name == "bytes" for i in range(kind.num_fields)):
            return f"{candidate}.bytes"
        raise SourceError(
            f"{path}: column {candidate!r} holds {kind}, not encoded images (bytes); encode them as PNG or JPEG, or name "
            "another column with --set images.columns.image=..."
        )
    raise SourceError(
        f"{path} has no column of encoded images ({', '.join(candidates)}); its columns are {', '.join(schema.names)}; "
        "name the right one with --set images.columns.image=..."
    )
