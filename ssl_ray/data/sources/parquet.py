"""Images in Parquet files: encoded in a column, or given as paths of image files."""

from __future__ import annotations

import os
import posixpath
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from pydantic import Field

from ssl_ray.config import Config
from ssl_ray.data.sources import columns as typed
from ssl_ray.data.sources.limit import first
from ssl_ray.data.sources.listing import GRAMMAR, LISTING_THREADS, Listing, escaped, mtime_ns, prefix_of, rows
from ssl_ray.data.sources.patterns import fixed_part, matching, refuse_splits
from ssl_ray.errors import SourceError
from ssl_ray.filesystems import file_info, patient, resolve
from ssl_ray.redaction import carries_secrets

NO_FILE = "path in a Parquet row without a file"
NO_IMAGE = "Parquet row without an image"
ADDRESS = "address in a Parquet row, which is not fetched"
NO_LABEL = "Parquet row without a label"

__all__ = ["ColumnsConfig", "list_parquet"]


class ColumnsConfig(Config):
    """Column names of Parquet sources. A field of a struct is named with dots: `a.b`."""

    # Bytes, paths, or a struct with a field `bytes` or `path`; None: image, image_bytes, bytes, jpg or png.
    image: str | None = None
    label: str = Field(default="label", min_length=1)  # a column, or a key of folders named `key=value`
    id: str | None = None  # None: image_id or id if there, else file and row; "none": file and row


@dataclass
class _File:
    """Listing of one Parquet file, and properties that all files must share."""

    listing: Listing
    path: str
    label_kind: str = ""  # a key of `typed.KINDS`; "" without labels
    num_paths: int = 0  # rows whose image is a file of its own


def list_parquet(source: str, columns: ColumnsConfig, *, labeled: bool) -> Listing:
    """List the images of Parquet files, with their classes if `labeled`.

    Raises:
        SourceError: a file is missing or not Parquet, there are no images or no labels, or files are of several splits.
    """
    if file_info(source).type == pafs.FileType.Directory:  # as Spark and Dask write one table
        source = f"{source.rstrip('/')}/**/*.parquet"
    listing, num_paths = Listing(source, "parquet"), 0
    files = matching(source, listing)
    if labeled:
        refuse_splits(source, [entry.path for entry in files], columns.label)
    files = files if labeled else list(first(source, files))
    named: _File | None = None  # first file with labels
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        for part in pool.map(lambda entry: _list_file(entry, source, columns, labeled), files):
            other = part.listing.image_column
            if other and listing.image_column not in ("", other):
                raise SourceError(
                    f"{source}: the files name their image column differently ({listing.image_column}, {other}); "
                    "give them one by one"
                )
            if named is not None and part.label_kind not in ("", named.label_kind):
                one, two = (f"{typed.KINDS[item.label_kind]} in {item.path}" for item in (named, part))
                raise SourceError(f"{source}: labels are {one} and {two}; write them alike, or give other files")
            named = named or (part if part.label_kind else None)
            listing.image_column = other or listing.image_column
            num_paths += part.num_paths
            listing.merge(part.listing)
    if not len(listing):
        raise _no_rows(source, listing, columns)
    if num_paths == len(listing):
        listing.format = "folder"
    return listing


def _no_rows(source: str, listing: Listing, columns: ColumnsConfig) -> SourceError:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in listing.dropped.items())
    if listing.dropped[NO_FILE] or listing.dropped[ADDRESS]:
        example = listing.examples.get(NO_FILE) or listing.examples[ADDRESS]
        return SourceError(
            f"{source}: the image column holds paths and no bytes, and none of the files is there ({reasons}; the first: "
            f"{example}); paths are relative to the Parquet file; put the files there, or write their bytes into the column"
        )
    if any(reason.startswith(NO_LABEL) for reason in listing.dropped):
        return SourceError(
            f"{source} has no row with a label in column {columns.label!r} ({reasons}); give it as --unlabeled, or name "
            "another column with --set images.columns.label=..."
        )
    return SourceError(f"{source} holds no rows with images ({reasons or 'no rows at all'}); give {GRAMMAR}")


def _list_file(entry: pafs.FileInfo, source: str, columns: ColumnsConfig, labeled: bool) -> _File:
    path = prefix_of(source) + entry.path
    with typed.parquet_errors(path):
        return patient(path, lambda: _read_listing(entry, path, source, columns, labeled))


def _read_listing(entry: pafs.FileInfo, path: str, source: str, columns: ColumnsConfig, labeled: bool) -> _File:
    part = _File(Listing(source, "parquet"), path)
    with typed.parquet_errors(path), pq.ParquetFile(entry.path, filesystem=resolve(source)[0]) as file:
        schema, count = file.schema_arrow, file.metadata.num_rows
        image = _image(schema, columns.image, path)
        identity = _identity(schema, columns.id, path)
        partitions = dict(step.split("=", 1) for step in entry.path.split("/")[:-1] if "=" in step)
        label = typed.find_column(schema, columns.label, path) if labeled else None
        if labeled and label is None and columns.label not in partitions:
            raise _no_column(schema, path, columns.label)
        without = _without_bytes(file, image)
        wanted = [way for way in (label and label[0], identity, image.path if without.any() else None) if way]
        table = file.read(columns=[".".join(way) for way in wanted]) if wanted else None
    where = f"{path}: column {columns.label}"
    names: list[str | None] | None = None
    keep = np.ones(count, bool)
    if table is not None and label is not None:
        known = typed.names_in_metadata(schema, label[0], path) if typed.label_kind(label[1], where) == "number" else None
        names, missing = typed.class_names(typed.column_of(table, label[0]), known, where)
        keep = np.array([name is not None for name in names], bool)
        part.label_kind = ("text" if known else typed.label_kind(label[1], where)) if keep.any() else ""
        for reason, number in missing.items():
            part.listing.drop(f"{NO_LABEL} ({reason})", path, number)
    elif labeled:
        value = unquote(partitions[columns.label]).strip()
        if value in ("", "__HIVE_DEFAULT_PARTITION__"):
            part.listing.drop(f"{NO_LABEL} (folder {columns.label}={value})", path, count)
            return part
        names, part.label_kind = [value] * count, "text"
    if table is not None and identity is not None:
        ids = _ids(table, identity, path)
    else:
        name = entry.path.removeprefix(fixed_part(source)).lstrip("/") or entry.base_name
        ids = [f"{name}:{row}" for row in range(count)]
    paths, sizes, times = [path] * count, [int(entry.size)] * count, [mtime_ns(entry)] * count
    file_row, length = np.arange(count), np.full(count, -1)
    if len(hit := np.flatnonzero(without & keep)):
        texts: list[Any] = [None] * count
        if table is not None and image.path is not None:
            texts = typed.values_of(typed.column_of(table, image.path), f"{path}: column {'.'.join(image.path)}")
        for row, found in zip(hit, _files(path, [texts[row] for row in hit], part.listing), strict=True):
            if found is None:
                keep[row] = False
            else:
                paths[row], sizes[row], times[row] = found
                file_row[row], length[row] = -1, sizes[row]
                part.num_paths += 1
    if image.bytes is not None and (keep & (file_row >= 0)).any():
        part.listing.image_column = ".".join(image.bytes)
    everything = rows(ids, paths, sizes, times, file_row=file_row, length=length.tolist(), class_name=names)
    part.listing.rows.append(everything if keep.all() else everything.filter(pa.array(keep)))
    return part


@dataclass(frozen=True)
class _Image:
    """Column names, from outer to inner, of the encoded bytes of images, and of their paths."""

    bytes: list[str] | None
    path: list[str] | None


def _image(schema: pa.Schema, name: str | None, path: str) -> _Image:
    candidates = [name] if name else ["image", "image_bytes", "bytes", "jpg", "png"]
    for candidate in candidates:
        found = typed.find_column(schema, candidate, path)
        if found is None:
            continue
        way, kind = found
        if typed.is_bytes(kind):
            return _Image(way, None)
        if typed.is_text(kind):
            return _Image(None, way)
        inner = {field: typed.find_column(schema, f"{candidate}.{field}", path) for field in ("bytes", "path")}
        encoded = inner["bytes"][0] if inner["bytes"] and typed.is_bytes(inner["bytes"][1]) else None
        named = inner["path"][0] if inner["path"] and typed.is_text(inner["path"][1]) else None
        if encoded or named:
            return _Image(encoded, named)
        raise SourceError(
            f"{path}: column {candidate!r} holds {kind}, not encoded images (bytes) or paths; encode them as PNG or JPEG, "
            "or name another column with --set images.columns.image=..."
        )
    raise SourceError(
        f"{path} has no column of encoded images ({', '.join(candidates)}); its columns are {_names(schema)}; "
        "name the right one with --set images.columns.image=..."
    )


def _names(schema: pa.Schema) -> str:
    return ", ".join(escaped(name) for name in schema.names[:30]) + (", ..." if len(schema.names) > 30 else "")


def _no_column(schema: pa.Schema, path: str, name: str) -> SourceError:
    return SourceError(
        f"{path} has no column {name!r}; its columns are {_names(schema)}; "
        "name the right one with --set images.columns.label=... or images.columns.id=..."
    )


def _identity(schema: pa.Schema, name: str | None, path: str) -> list[str] | None:
    """Return the names, from outer to inner, of the column of ids; None: rows are numbered."""

    def usable(kind: pa.DataType) -> bool:
        return typed.is_text(kind) or typed.is_bytes(kind) or pa.types.is_integer(kind)

    if name is None:
        usual = [n for n in ("image_id", "id") if schema.names.count(n) == 1 and usable(typed.plain(schema.field(n).type))]
        return usual[:1] or None
    found = typed.find_column(schema, name, path)
    if found is None and name == "none":
        return None
    if found is None:
        raise _no_column(schema, path, name)
    if not usable(found[1]):
        raise SourceError(
            f"{path}: column {name!r} holds {found[1]}, and an id is text or a whole number; name another, or number the rows "
            "with --set images.columns.id=none"
        )
    return found[0]


def _ids(table: pa.Table, way: list[str], path: str) -> list[str]:
    name = ".".join(way)
    values = typed.values_of(typed.column_of(table, way), f"{path}: column {name}")
    if any(value is None for value in values):
        raise SourceError(
            f"{path} has rows without an id in column {name!r}; drop them, name another column, or number the rows with "
            "--set images.columns.id=none"
        )
    return [str(value) for value in values]


def _without_bytes(file: pq.ParquetFile, image: _Image) -> np.ndarray:
    """Find the rows without encoded bytes, bool [n]. A row group is read only if statistics show neither none nor all."""
    metadata = file.metadata
    if image.bytes is None:
        return np.ones(metadata.num_rows, bool)
    name, found = ".".join(image.bytes), [np.empty(0, bool)]
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = (group.column(i) for i in range(group.num_columns))
        statistics = next((chunk.statistics for chunk in chunks if chunk.path_in_schema == name), None)
        nulls = statistics.null_count if statistics is not None and statistics.has_null_count else None
        if nulls is None and image.path is None:
            nulls = 0  # unknown, and there is no path to use instead: labeling quarantines such rows
        if nulls in (0, group.num_rows):
            found.append(np.full(group.num_rows, nulls > 0))
            continue
        batches = file.iter_batches(512, row_groups=[number], columns=[name])
        found += [typed.column_of(batch, image.bytes).is_null().to_numpy(zero_copy_only=False) for batch in batches]
    return np.concatenate(found)


def _files(parquet: str, texts: list[str | None], listing: Listing) -> list[tuple[str, int, int] | None]:
    """Return path, size and modification time of files, relative to the Parquet file; None for a path that is not used."""
    places: list[str | None] = []
    for text in texts:
        place = None
        if not text:
            listing.drop(NO_IMAGE, parquet)
        elif "://" in text and (not text.startswith("s3://") or carries_secrets(text)):
            listing.drop(ADDRESS, text.split("?", 1)[0] if not carries_secrets(text) else parquet)
        else:
            place = text if "://" in text else posixpath.join(posixpath.dirname(parquet), text)
        places.append(place)
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        found = list(pool.map(_look_at, places))
    for place, item in zip(places, found, strict=True):
        if place is not None and item is None:
            listing.drop(NO_FILE, place)
    return found


def _look_at(place: str | None) -> tuple[str, int, int] | None:
    if place is None:
        return None
    if "://" in place:
        info = file_info(place)
        return (place, int(info.size), mtime_ns(info)) if info.type == pafs.FileType.File else None
    try:
        status = os.stat(place)
    except (OSError, ValueError):  # missing, or not a valid path
        return None
    return (place, status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None
