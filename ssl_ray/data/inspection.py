"""Decode labeled and test images before anything is trained, to find damage in seconds, not after hours."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa

from ssl_ray.data.manifest import Part
from ssl_ray.data.shards import Encoded, Unreadable, read_rows
from ssl_ray.data.sources import ImagesConfig
from ssl_ray.errors import SourceError
from ssl_ray.filesystems import patient, read_file, resolve
from ssl_ray.progress import time_left
from ssl_ray.views.channels import RANGE_USED, Decoding
from ssl_ray.views.decode import TooLargeError, decoded, upright_size

AT_ONCE, AT_ONCE_BYTES = 1024, 256 * 2**20
"""Number of images, and encoded bytes, in memory at a time."""

HEAD = 64 * 1024
"""First bytes of a JPEG to read; they usually hold its size and orientation."""

SAMPLED = 16
"""Number of unlabeled images per source that are decoded to check their values."""

SMALL_RANGE = 0.1
"""Share of the range of values below which a picture with more than 8 bits is nearly black, or nearly one gray."""

PROGRESS_S = 5.0
NAMED = 5


@dataclass(frozen=True)
class Picture:
    """Result of decoding one file."""

    size: tuple[int, int] = (0, 0)
    range_used: float | None = None  # for more than 8 bits per channel
    reason: str = ""  # why it cannot be decoded


@dataclass
class Inspection:
    """Results of checking the pictures of a corpus."""

    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)  # upright, of files with boxes or masks, by path
    small_range: dict[str, tuple[int, int]] = field(default_factory=dict)  # by source: with a small range, and checked
    refused: dict[str, tuple[int, int, str]] = field(default_factory=dict)  # by source: refused, checked, a reason
    not_decoded: int = 0  # labeled images beyond the budget

    def notes(self) -> list[str]:
        """Return the results for the summary, one line each."""
        notes = [
            f"{count:,} of {total:,} pictures of more than 8 bits that were looked at in {source} use less than a tenth of "
            "their range and are nearly black or gray; say what is black and white, as in --set images.range=[0,4095]"
            for source, (count, total) in self.small_range.items()
        ]
        notes += [
            f"{count:,} of {total:,} unlabeled images that were looked at in {source} will be put aside: the first {reason}"
            for source, (count, total, reason) in self.refused.items()
        ]
        if self.not_decoded:
            notes.append(
                f"{self.not_decoded:,} labeled images were not decoded to find damage; raise images.leak_read_mb to decode them"
            )
        return notes


def inspect_images(config: ImagesConfig, parts: list[Part]) -> Inspection:
    """Decode test and validation images, labeled ones up to `leak_read_mb`, and a few unlabeled ones.

    Raises:
        SourceError: a labeled, test or validation image cannot be decoded.
    """
    found = Inspection()
    ranges: dict[str, list[float]] = defaultdict(list)
    outside = [part for part in parts if not part.listing.source.startswith("sample (")]
    order = ("test", "val", "train")
    jobs, budget = [], config.leak_read_mb * 2**20
    for part in sorted((part for part in outside if part.split in order), key=lambda part: order.index(part.split)):
        for rows in part.tables():
            num_bytes = _num_bytes(part, rows)
            if part.split == "train" and num_bytes > budget:
                found.not_decoded += len(rows)
                if part.listing.targets:
                    jobs.append((part, rows, False))
                continue
            budget -= num_bytes if part.split == "train" else 0
            jobs.append((part, rows, True))
    jobs += [
        (part, rows, False) for part in outside if part.split == "unlabeled" and part.listing.targets for rows in part.tables()
    ]
    bad: list[tuple[str, str]] = []
    begin, total, done, said = time.perf_counter(), sum(len(rows) for _, rows, _ in jobs), 0, 0.0
    with ThreadPoolExecutor(16, thread_name_prefix="decode") as pool:
        for part, rows, in_full in jobs:
            for piece, pictures in _pictures(part, rows, config.decoding, in_full, pool):
                for name, picture in zip(_names(part, piece), pictures, strict=True):
                    if picture.reason:
                        bad.append((name, picture.reason))
                    elif part.listing.targets:
                        found.sizes[name] = picture.size
                    if picture.range_used is not None:
                        ranges[part.listing.source].append(picture.range_used)
                done, took = done + len(piece), time.perf_counter() - begin
                if took - said > PROGRESS_S and done < total:
                    said = took
                    print(f"looked at {done:,}/{total:,} labeled and test images{time_left(done, total, took)}", flush=True)
        if bad:
            raise _damaged(bad)
        for part in (part for part in outside if part.split == "unlabeled" and not part.listing.targets):
            sample = _sample(part, config.decoding, pool)
            ranges[part.listing.source] += [picture.range_used for picture in sample if picture.range_used is not None]
            reasons = [picture.reason for picture in sample if picture.reason]
            if reasons:
                found.refused[part.listing.source] = len(reasons), len(sample), reasons[0]
    for source, used in ranges.items():
        small = sum(value < SMALL_RANGE for value in used)
        if 2 * small > len(used):
            found.small_range[source] = small, len(used)
    return found


def _damaged(bad: list[tuple[str, str]]) -> SourceError:
    bad.sort()
    (name, reason), others = bad[0], [name for name, _ in bad[1:]]
    named = ", ".join(others[:NAMED]) + (", ..." if len(others) > NAMED else "")
    more = f" ({len(others)} more: {named})" if others else ""
    return SourceError(
        f"{name} {reason}{more}; take it out of the labeled or test images, or repair it, and run the same command again"
    )


def _names(part: Part, rows: pa.Table) -> list[str]:
    paths = rows["path"].to_pylist()
    if part.listing.format == "folder":
        return paths
    return [f"{path} ({name})" for path, name in zip(paths, rows["image_id"].to_pylist(), strict=True)]


def _num_bytes(part: Part, rows: pa.Table) -> int:
    """Return the number of bytes that are read for some rows."""
    if part.listing.format == "parquet":  # lengths of its images are unknown
        return sum(dict(zip(rows["path"].to_pylist(), rows["size"].to_pylist(), strict=True)).values())
    return int(rows["length"].to_numpy().sum())


def _pictures(
    part: Part, rows: pa.Table, decoding: Decoding, in_full: bool, pool: ThreadPoolExecutor
) -> Iterator[tuple[pa.Table, list[Picture]]]:
    """Yield rows with their pictures, piece by piece."""
    step = min(AT_ONCE, max(1, AT_ONCE_BYTES * len(rows) // max(1, _num_bytes(part, rows))))
    for start in range(0, len(rows), step):
        piece = rows.slice(start, step)
        if in_full:
            data = read_rows(piece, part.listing.format, part.listing.image_column, pool)
            yield piece, list(pool.map(partial(_decoded, decoding=decoding), data, chunksize=16))
        else:
            yield piece, list(pool.map(_sized, piece["path"].to_pylist()))


def _decoded(data: Encoded, decoding: Decoding) -> Picture:
    if isinstance(data, Unreadable):
        return Picture(reason=data.reason)
    try:
        with decoded(data, decoding) as image:
            return Picture(image.size, image.info.get(RANGE_USED))
    except ValueError as error:
        return Picture(reason=str(error))


def _sized(path: str) -> Picture:
    """Read the size of a picture from its first bytes if possible, else from the whole file."""
    filesystem, inside = resolve(path)

    def head() -> bytes:
        with filesystem.open_input_stream(inside) as stream:
            return bytes(stream.read(HEAD))

    try:
        # Pillow is given bytes, not the file: it takes a connection that breaks for a broken image.
        start = patient(path, head)
        size = upright_size(start) if start.startswith(b"\xff\xd8") else None
        size = size or upright_size(read_file(path))
    except FileNotFoundError:
        return Picture(reason="was deleted since it was listed")
    except TooLargeError as error:
        return Picture(reason=str(error))
    return Picture(size) if size else Picture(reason="cannot be opened as an image")


def _sample(part: Part, decoding: Decoding, pool: ThreadPoolExecutor) -> list[Picture]:
    """Decode some unlabeled images of a part."""
    for rows in part.tables():
        spread = part.listing.format == "folder"  # a Parquet or tar file is read from its beginning
        stop = len(rows) if spread else min(SAMPLED, len(rows))
        taken = rows.take(pa.array(np.unique(np.linspace(0, stop - 1, min(SAMPLED, stop)).round().astype(np.int64))))
        return [picture for _, pictures in _pictures(part, taken, decoding, True, pool) for picture in pictures]
    return []
