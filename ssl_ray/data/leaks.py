"""Images that stand twice: among the unlabeled (de-duplication), or in test and elsewhere (a leak).

Bytes are compared by a hash. Two files of different length are different, so that only images as long as a test image are
read at all; a Parquet source does not tell lengths, and beyond a budget the check is left to labelling, which reads
every image anyway.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from ssl_ray.data.manifest import Part
from ssl_ray.data.shards import Encoded, decode_all, read_rows
from ssl_ray.data.sources import ImagesConfig
from ssl_ray.errors import SourceError
from ssl_ray.schema import TEST_HASHES
from ssl_ray.settings.views import Preprocess
from ssl_ray.storage import Folder

CHUNK = 1024
"""Images that are read at a time."""


def content_hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


@dataclass
class Findings:
    """What was found, and what of it is to be left out: image ids by split."""

    leaks: dict[str, str] = field(default_factory=dict)  # id elsewhere -> id of the test image
    near: dict[str, str] = field(default_factory=dict)
    duplicates: set[str] = field(default_factory=set)  # unlabeled images to leave out
    deferred: bool = False  # the unlabeled images are compared when they are labeled


def find(config: ImagesConfig, parts: list[Part], out: Folder) -> Findings:
    """Compare as the settings say, and write the hashes of the test images for labelling.

    Raises:
        SourceError: a test image also stands among the others, and `leaks=refuse`.
    """
    found = Findings()
    with ThreadPoolExecutor(16) as pool:
        if config.leaks != "ignore":
            _exact(config, parts, out, found, pool)
            if config.near_leaks is not None:
                _near(config, parts, out, found, pool)
        if config.deduplicate:
            _duplicates(parts, out, found, pool)
    if (found.leaks or found.near) and config.leaks == "refuse":
        exact = bool(found.leaks)
        one, test = next(iter((found.leaks or found.near).items()))
        count = len(found.leaks) + len(found.near)
        raise SourceError(
            f"{one} {'has the same bytes as' if exact else 'is nearly the same image as'} the test image {test}"
            f"{f' ({count} such images)' if count > 1 else ''}; a model would be tested on what it saw. Take them out, or let "
            "them be left out of training with --set images.leaks=drop"
        )
    return found


def _encoded(part: Part, rows: pa.Table, out: Folder, pool: ThreadPoolExecutor) -> list[Encoded]:
    paths = [out.file(path) if path.startswith("pixels/") else path for path in rows["path"].to_pylist()]
    placed = rows.set_column(rows.schema.get_field_index("path"), "path", pa.array(paths, pa.string()))
    return read_rows(placed, part.listing.format, part.listing.image_column, pool)


def _hashed(part: Part, rows: pa.Table, out: Folder, pool: ThreadPoolExecutor) -> Iterator[tuple[str, bytes]]:
    for start in range(0, len(rows), CHUNK):
        piece = rows.slice(start, CHUNK)
        for name, data in zip(piece["image_id"].to_pylist(), _encoded(part, piece, out, pool), strict=True):
            if isinstance(data, bytes) and data:
                yield name, content_hash(data)


def _exact(config: ImagesConfig, parts: list[Part], out: Folder, found: Findings, pool: ThreadPoolExecutor) -> None:
    tests = [part for part in parts if part.split == "test"]
    held = {digest: name for part in tests for rows in part.tables() for name, digest in _hashed(part, rows, out, pool)}
    if not held:
        return
    table = pa.table({"image_id": list(held.values()), "hash": list(held)}, schema=TEST_HASHES)
    out.write_table("test_hashes.parquet", table)
    lengths = np.unique(np.concatenate([rows["length"].to_numpy() for part in tests for rows in part.tables()]))
    lengths_known = (lengths >= 0).all()
    for part in (part for part in parts if part.split != "test"):
        budget = float("inf") if part.split in ("train", "val") else config.leak_read_mb * 2**20
        if _bytes_to_read(part, lengths if lengths_known else None) > budget:
            found.deferred = True
            continue
        for rows in part.tables():
            if lengths_known and part.listing.format != "parquet":
                rows = rows.filter(pa.array(np.isin(rows["length"].to_numpy(), lengths)))
            for name, digest in _hashed(part, rows, out, pool):
                if digest in held:
                    found.leaks[name] = held[digest]


def _bytes_to_read(part: Part, lengths: np.ndarray | None) -> float:
    total = 0.0
    files: dict[str, int] = {}
    for rows in part.tables():
        length = rows["length"].to_numpy()
        if part.listing.format == "parquet":
            files.update(zip(rows["path"].to_pylist(), rows["size"].to_pylist(), strict=True))
        else:
            total += float(length[np.isin(length, lengths)].sum() if lengths is not None else length.sum())
    return total + sum(files.values())


def _duplicates(parts: list[Part], out: Folder, found: Findings, pool: ThreadPoolExecutor) -> None:
    """Of images with the same bytes, the first of the listing stays. Hashes are kept of those that share a length."""
    streams = [part for part in parts if part.split == "unlabeled"]
    seen: set[bytes] = set()
    for part in streams:
        if part.listing.format == "parquet":
            shared = None
        else:
            values, counts = np.unique(
                np.concatenate([rows["length"].to_numpy() for rows in part.tables()] or [np.empty(0, np.int64)]),
                return_counts=True,
            )
            shared = values[counts > 1] if len(streams) == 1 else values
        for rows in part.tables():
            if shared is not None:
                rows = rows.filter(pa.array(np.isin(rows["length"].to_numpy(), shared)))
            for name, digest in _hashed(part, rows, out, pool):
                if digest in seen:
                    found.duplicates.add(name)
                seen.add(digest)


NEAR = Preprocess(size=16)


def embedding(pixels: np.ndarray) -> np.ndarray:
    """uint8 [n, 16, 16, 3] -> float32 [n, 768]: the picture in little, centred and of length one, so that brightness,
    contrast, size and compression change it hardly."""
    flat = pixels.reshape(len(pixels), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def _near(config: ImagesConfig, parts: list[Part], out: Folder, found: Findings, pool: ThreadPoolExecutor) -> None:
    import faiss

    def embedded(part: Part) -> Iterator[tuple[list[str], np.ndarray]]:
        for rows in part.tables():
            for start in range(0, len(rows), CHUNK):
                piece = rows.slice(start, CHUNK)
                pixels, bad = decode_all(_encoded(part, piece, out, pool), NEAR, pool, decoding=config.decoding)
                good = np.setdiff1d(np.arange(len(piece)), [position for position, _ in bad])
                names = piece["image_id"].to_pylist()
                yield [names[i] for i in good], embedding(pixels[good])

    index, names = faiss.IndexFlatIP(NEAR.size**2 * 3), []
    for part in (part for part in parts if part.split == "test"):
        for ids, vectors in embedded(part):
            index.add(vectors)
            names += ids
    if not names:
        return
    for part in (part for part in parts if part.split != "test"):
        for ids, vectors in embedded(part):
            cosine, nearest = index.search(vectors, 1)
            for position in np.flatnonzero(cosine[:, 0] >= (config.near_leaks or 1.0)):
                if ids[position] not in found.leaks:
                    found.near[ids[position]] = names[nearest[position, 0]]
