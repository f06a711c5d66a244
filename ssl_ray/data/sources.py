"""Where images come from: one grammar for every job, local or `s3://`.

folder/          image files below it; where labels are wanted, the first sub-folder is the class
path/*.parquet   encoded images in a column, one or many files
sample:NAME      the real sample data of `ssl_ray.samples`
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from pydantic import Field

from ssl_ray.config import Config
from ssl_ray.errors import SourceError
from ssl_ray.storage import resolve

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
GRAMMAR = "folder/, path/*.parquet, sample:mnist5k or sample:fashion"


class ColumnsConfig(Config):
    """Column names of Parquet sources."""

    image: str | None = None  # bytes, or a struct with a field `bytes`; None: image, image_bytes, bytes or jpg
    label: str = "label"
    id: str | None = None  # None: id or image_id if there, else file and row


class ImagesConfig(Config):
    """What a corpus is made of. With a sample, or with `labels`, the remaining labels are hidden and kept as `truth`."""

    labeled: str = "sample:mnist5k"
    unlabeled: str | None = None
    test: str | None = None
    labels: Annotated[int, Field(ge=1)] | None = None  # labels drawn, equally many a class; None: all
    test_images: Annotated[int, Field(ge=0)] | None = None  # drawn from `labeled` where there is no `test`
    val_images: Annotated[int, Field(ge=0)] = 0  # drawn from the labeled images that are not used as labels
    shard_rows: Annotated[int, Field(ge=1)] = 2000
    columns: ColumnsConfig = ColumnsConfig()
    seed: int = 0


@dataclass
class Listing:
    """Images found, column by column; `class_name` is empty where no label was found."""

    source: str
    format: str  # folder or parquet
    image_id: list[str] = field(default_factory=list)
    path: list[str] = field(default_factory=list)
    file_row: list[int] = field(default_factory=list)
    size: list[int] = field(default_factory=list)
    class_name: list[str] = field(default_factory=list)
    image_column: str = ""
    passed_over: int = 0  # files that are no images, by their suffix

    def __len__(self) -> int:
        return len(self.image_id)


def list_source(source: str, columns: ColumnsConfig, *, labeled: bool) -> Listing:
    """All images of a folder or of Parquet files, in a stable order.

    Raises:
        SourceError: nothing there, no images in it, or no labels where they are wanted.
    """
    if source.startswith(("wds:", "coco:", "voc:")):
        raise SourceError(f"{source}: this kind of source cannot be read yet; give {GRAMMAR}")
    if source.endswith(".parquet"):
        return _list_parquet(source, columns, labeled=labeled)
    return _list_folder(source, labeled=labeled)


def _list_folder(source: str, *, labeled: bool) -> Listing:
    filesystem, base = resolve(source)
    info = filesystem.get_file_info(base)
    if info.type == pafs.FileType.NotFound:
        raise SourceError(f"{source} does not exist; give {GRAMMAR}")
    if info.type == pafs.FileType.File:
        raise SourceError(f"{source} is a file; give {GRAMMAR}")
    prefix = source.split("://", 1)[0] + "://" if "://" in source else ""
    listing = Listing(source, "folder")
    loose = 0
    found = filesystem.get_file_info(pafs.FileSelector(base, recursive=True))
    for entry in sorted(found, key=lambda item: item.path):
        if entry.type != pafs.FileType.File:
            continue
        inside = entry.path[len(base) :].lstrip("/")
        if any(part.startswith(".") for part in inside.split("/")):
            continue
        if not inside.lower().endswith(IMAGE_SUFFIXES):
            listing.passed_over += 1
            continue
        first, separator, _ = inside.partition("/")
        if not separator:
            loose += 1
            if labeled:
                continue
        listing.image_id.append(inside)
        listing.path.append(prefix + entry.path)
        listing.file_row.append(-1)
        listing.size.append(int(entry.size))
        listing.class_name.append(first if separator else "")
    if labeled and loose and not len(listing):
        raise SourceError(
            f"{source} has {loose} images but no class sub-folders; put every image into a folder that is named after its "
            "class, as in folder/cat/1.jpg"
        )
    if labeled and loose:
        raise SourceError(f"{source} has {loose} images outside the class sub-folders; move them into one or take them out")
    if not len(listing):
        kinds = " ".join(IMAGE_SUFFIXES)
        raise SourceError(f"{source} holds no images ({listing.passed_over} other files); images end in {kinds}")
    return listing


def _list_parquet(source: str, columns: ColumnsConfig, *, labeled: bool) -> Listing:
    filesystem, pattern = resolve(source)
    prefix = source.split("://", 1)[0] + "://" if "://" in source else ""
    folder = pattern.rsplit("/", 1)[0]
    found = filesystem.get_file_info(pafs.FileSelector(folder, allow_not_found=True))
    files = sorted(
        (entry for entry in found if entry.type == pafs.FileType.File and fnmatch.fnmatchcase(entry.path, pattern)),
        key=lambda entry: entry.path,
    )
    if not files:
        raise SourceError(f"{source}: no such Parquet file; give {GRAMMAR}")
    listing = Listing(source, "parquet")
    for entry in files:
        try:
            with pq.ParquetFile(entry.path, filesystem=filesystem) as file:
                schema, count = file.schema_arrow, file.metadata.num_rows
                image = image_column(schema, columns.image, prefix + entry.path)
                wanted = {columns.label} if labeled else set()
                identity = columns.id or next((name for name in ("image_id", "id") if name in schema.names), None)
                if identity:
                    wanted.add(identity)
                missing = sorted(wanted - set(schema.names))
                if missing:
                    raise SourceError(
                        f"{prefix}{entry.path} has no column {missing[0]!r}; its columns are {', '.join(schema.names)}; "
                        "name the right one with --set images.columns.label=... or images.columns.id=..."
                    )
                table = file.read(columns=sorted(wanted)) if wanted else None
        except pa.ArrowInvalid as error:
            raise SourceError(f"{prefix}{entry.path} cannot be read as Parquet: {str(error).splitlines()[0]}") from None
        if listing.image_column not in ("", image):
            raise SourceError(f"{source}: the files name their image column differently ({listing.image_column}, {image})")
        listing.image_column = image
        name = entry.path.rsplit("/", 1)[-1]
        if table is not None and identity:
            listing.image_id += [str(value) for value in table[identity].to_pylist()]
        else:
            listing.image_id += [f"{name}:{row}" for row in range(count)]
        if table is not None and labeled:
            labels = table[columns.label].to_pylist()
            if any(value is None for value in labels):
                raise SourceError(f"{prefix}{entry.path} has rows without a label in column {columns.label!r}; drop them")
            listing.class_name += [str(value) for value in labels]
        else:
            listing.class_name += [""] * count
        listing.path += [prefix + entry.path] * count
        listing.file_row += range(count)
        listing.size += [int(entry.size)] * count
    if not len(listing):
        raise SourceError(f"{source} holds no rows")
    return listing


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
        raise SourceError(f"{path}: column {candidate!r} holds {kind}, not encoded images (bytes)")
    raise SourceError(
        f"{path} has no column of encoded images ({', '.join(candidates)}); its columns are {', '.join(schema.names)}; "
        "name the right one with --set images.columns.image=..."
    )


def stratified(labels: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
    """`count` positions, as equally many of every class as there are, in ascending order.

    Classes take turns in a drawn order, so that a smaller draw from the same generator is part of a larger one.
    """
    turns = []
    for label in np.unique(labels):
        members = draw.permutation(np.flatnonzero(labels == label))
        turns.append(np.stack([np.arange(len(members)), np.full(len(members), label), members]))
    order = np.concatenate(turns, axis=1)
    chosen = order[2, np.lexsort((order[1], order[0]))][:count]
    return np.sort(chosen)
