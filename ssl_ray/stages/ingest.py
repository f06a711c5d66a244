"""Which images there are: one listing, once, into a manifest of shards. The pixels stay where they are."""

from __future__ import annotations

import io
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ssl_ray.artifacts import Corpus
from ssl_ray.data.sources import ImagesConfig, Listing, list_source, stratified
from ssl_ray.errors import SourceError
from ssl_ray.randomness import generator
from ssl_ray.samples import Sample, load_sample
from ssl_ray.scale import Scale
from ssl_ray.schema import MANIFEST, NO_LABEL, SHARDS
from ssl_ray.stage import stage
from ssl_ray.storage import Folder, resolve

SPLITS = ("train", "val", "test", "unlabeled")


@dataclass
class Part:
    """Images of one split from one source: positions in a listing, with labels and hidden labels."""

    split: str
    role: str  # first part of the image ids, so that ids from different sources cannot meet
    listing: Listing
    index: np.ndarray
    label: np.ndarray
    truth: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))


@stage(Corpus)
def ingest(config: ImagesConfig, out: Folder, scale: Scale) -> dict[str, Any]:
    """List, split and shard.

    Raises:
        SourceError: nothing there, no class folders, labels that do not cover the classes, test classes that have no
            labels, two images with one id, a labeled or test file that is no image.
    """
    pool, test = _pools(config, out)
    classes = sort_classes(set(pool.class_name))
    if len(classes) < 2:
        raise SourceError(f"{config.labeled} has {len(classes)} class ({', '.join(classes)}); training needs two or more")
    number = {name: index for index, name in enumerate(classes)}
    label = np.array([number[name] for name in pool.class_name], np.int32)
    parts = _split(config, pool, label, number, test)
    if config.unlabeled is not None:
        listing = list_source(config.unlabeled, config.columns, labeled=False)
        parts.append(_part("unlabeled", "unlabeled", listing, np.arange(len(listing)), None))
    if not any(part.split == "unlabeled" and len(part.index) for part in parts):
        raise SourceError("there are no unlabeled images; give --unlabeled SOURCE, or hide labels with --set images.labels=N")
    _check_labels(parts, classes)
    _check_unique(parts)
    _check_images([part for part in parts if part.split != "unlabeled"])
    counts = _write(config, parts, out)
    per_class = Counter(classes[value] for part in parts if part.split == "train" for value in part.label)
    summary = (
        f"{counts['train']:,} labeled, {counts['unlabeled']:,} unlabeled, {counts['test']:,} test images "
        f"of {len(classes)} classes"
    )
    return {
        "summary": summary + (f", {counts['val']:,} for validation" if counts["val"] else ""),
        "classes": classes,
        "images": counts,
        "per_class": dict(per_class),
        "passed_over": sum({id(part.listing): part.listing.passed_over for part in parts}.values()),
    }


def sort_classes(names: set[str]) -> list[str]:
    """Numbers as numbers, everything else by name."""
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)


def _pools(config: ImagesConfig, out: Folder) -> tuple[Listing, Listing | None]:
    """The labeled listing and the test listing. Samples become Parquet files first, so that all data has one path."""
    if config.labeled.startswith("sample:"):
        sample = load_sample(config.labeled.removeprefix("sample:"))
        pool = _write_sample(sample, "pool", sample.images, sample.labels, out)
        test = None
        if sample.test_images is not None and sample.test_labels is not None:
            test = _write_sample(sample, "test", sample.test_images, sample.test_labels, out)
    else:
        pool, test = list_source(config.labeled, config.columns, labeled=True), None
    if config.test is not None:
        test = list_source(config.test, config.columns, labeled=True)
    return pool, test


def _write_sample(sample: Sample, name: str, images: np.ndarray, labels: np.ndarray, out: Folder) -> Listing:
    def encode(pixels: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        return buffer.getvalue()

    file = f"pixels/{name}.parquet"
    table = pa.table({"image": pa.array([encode(pixels) for pixels in images], pa.binary()), "label": labels})
    out.write_table(file, table, row_group_size=1000)
    filesystem, path = resolve(out.file(file))
    count = len(images)
    return Listing(
        source=f"sample ({name})",
        format="parquet",
        image_id=[str(index) for index in range(count)],
        path=[file] * count,
        file_row=list(range(count)),
        size=[int(filesystem.get_file_info(path).size)] * count,
        class_name=[sample.classes[label] for label in labels],
        image_column="image",
    )


def _part(split: str, role: str, listing: Listing, index: np.ndarray, label: np.ndarray | None, hide: bool = False) -> Part:
    none = np.full(len(index), NO_LABEL, np.int32)
    known = none if label is None else label[index]
    return Part(split, role, listing, index, none if hide else known, known if hide else none)


def _split(config: ImagesConfig, pool: Listing, label: np.ndarray, number: dict[str, int], test: Listing | None) -> list[Part]:
    """Test first, then validation, then labels; what is left over is unlabeled. Equally many a class, drawn by seed."""
    rest = np.arange(len(pool))

    def take(count: int, address: str) -> np.ndarray:
        nonlocal rest
        if count > len(rest):
            raise SourceError(f"images.{address}={count} is more than the {len(rest)} labeled images that are left; lower it")
        if not count:
            return np.empty(0, np.int64)
        chosen = rest[stratified(label[rest], count, generator(config.seed, "split", address))]
        rest = np.setdiff1d(rest, chosen)
        return chosen

    parts = []
    if test is not None:
        unknown = sort_classes(set(test.class_name) - set(number))
        if unknown:
            raise SourceError(
                f"the test images have classes without labels: {', '.join(unknown[:10])}; the labeled classes are "
                f"{', '.join(list(number)[:20])}"
            )
        known = np.array([number[name] for name in test.class_name], np.int32)
        parts.append(_part("test", "test", test, np.arange(len(test)), known))
    else:
        count = config.test_images if config.test_images is not None else len(pool) // 5
        if not count:
            raise SourceError("there are no test images; give --test SOURCE, or --set images.test_images=N")
        parts.append(_part("test", "labeled", pool, take(count, "test_images"), label))
    parts.append(_part("val", "labeled", pool, take(config.val_images, "val_images"), label))
    wanted = len(rest) if config.labels is None else config.labels
    parts.append(_part("train", "labeled", pool, take(wanted, "labels"), label))
    parts.append(_part("unlabeled", "labeled", pool, rest, label, hide=True))
    return parts


def _check_labels(parts: list[Part], classes: list[str]) -> None:
    have = np.concatenate([part.label for part in parts if part.split == "train"])
    if len(have) < len(classes):
        raise SourceError(f"{len(have)} labels for {len(classes)} classes; give at least one label a class")
    missing = [name for index, name in enumerate(classes) if not (have == index).any()]
    if missing:
        raise SourceError(f"no label for {', '.join(missing[:10])}; give at least one label a class")


def _check_unique(parts: list[Part]) -> None:
    seen: dict[str, str] = {}
    files: dict[tuple[str, int], str] = {}
    for part in parts:
        for index in part.index:
            file = (part.listing.path[index], part.listing.file_row[index])
            if files.setdefault(file, part.split) != part.split:
                raise SourceError(
                    f"{file[0]} stands in {files[file]} and in {part.split}; give sources that do not overlap, or a model is "
                    "tested on what it saw"
                )
            image_id = f"{part.role}/{part.listing.image_id[index]}"
            where = f"{part.listing.path[index]} row {part.listing.file_row[index]}"
            if image_id in seen:
                raise SourceError(f"two images have the id {image_id}: {seen[image_id]} and {where}; make the ids unique")
            seen[image_id] = where


def _check_images(parts: list[Part]) -> None:
    """Labeled and test files must at least begin like an image: a few bytes of each are read, in parallel."""

    def check(path: str) -> str | None:
        filesystem, inside = resolve(path)
        with filesystem.open_input_file(inside) as stream:
            try:
                with Image.open(stream):
                    return None
            except (OSError, SyntaxError, Image.DecompressionBombError):
                return path

    paths = [part.listing.path[index] for part in parts if part.listing.format == "folder" for index in part.index]
    with ThreadPoolExecutor(16) as pool:
        bad = [path for path in pool.map(check, paths) if path is not None]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise SourceError(f"{bad[0]}{more} cannot be opened as an image; take it out of the labeled or test images")


def _write(config: ImagesConfig, parts: list[Part], out: Folder) -> dict[str, int]:
    """manifest.parquet, whose row group i is shard i, and shards.parquet."""
    sink = pa.BufferOutputStream()
    shards: list[dict[str, Any]] = []
    with pq.ParquetWriter(sink, MANIFEST, compression="zstd") as writer:
        for split in SPLITS:
            for part in (part for part in parts if part.split == split):
                order = np.arange(len(part.index))
                if part.listing.format == "folder" or part.listing.source.startswith("sample"):
                    # So that no shard holds one class only. A user's Parquet files are read in row ranges instead.
                    order = generator(config.seed, "shards", split, part.role).permutation(len(part.index))
                for start in range(0, len(order), config.shard_rows):
                    rows = np.sort(order[start : start + config.shard_rows])
                    writer.write_table(_rows(part, rows), row_group_size=len(rows))
                    shards.append(
                        {
                            "shard": len(shards),
                            "split": split,
                            "format": part.listing.format,
                            "num_rows": len(rows),
                            "image_column": part.listing.image_column,
                        }
                    )
    out.write_bytes("manifest.parquet", sink.getvalue().to_pybytes())
    out.write_table("shards.parquet", pa.Table.from_pylist(shards, SHARDS))
    return {split: sum(len(part.index) for part in parts if part.split == split) for split in SPLITS}


def _rows(part: Part, rows: np.ndarray) -> pa.Table:
    listing, index = part.listing, part.index[rows]
    return pa.table(
        {
            "image_id": [f"{part.role}/{listing.image_id[i]}" for i in index],
            "path": [listing.path[i] for i in index],
            "file_row": [listing.file_row[i] for i in index],
            "label": part.label[rows],
            "truth": part.truth[rows],
            "size": [listing.size[i] for i in index],
        },
        schema=MANIFEST,
    )
