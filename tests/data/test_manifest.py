"""Shards: the same whatever order a listing comes in, in bounded memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ssl_ray.data.manifest as manifest
from ssl_ray.data.manifest import Part, shards_of
from ssl_ray.data.sources.listing import ROWS, Listing, Spool, rows


def listing(count: int, order: np.ndarray | None = None, format: str = "folder", files: int = 1) -> Listing:
    made = Listing("x", format)
    order = np.arange(count) if order is None else order
    names = [f"{i:06d}.png" for i in order]
    for start in range(0, count, 100):
        part = names[start : start + 100]
        paths = [f"/x/{int(name[:6]) * files // count}.tar" if files > 1 else f"/x/{name}" for name in part]
        made.rows.append(rows(part, paths, [10] * len(part), [5] * len(part), file_row=range(start, start + len(part))))
    return made


def ids(part: Part, shard_rows: int = 64) -> list[list[str]]:
    return [shard["image_id"].to_pylist() for shard in shards_of(part, shard_rows, seed=3)]


@pytest.mark.parametrize("bucket_rows", [10_000, 200])
def test_the_order_of_the_listing_does_not_matter(bucket_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "BUCKET_ROWS", bucket_rows)
    count = 1000
    mixed = np.random.default_rng(0).permutation(count)
    first, second = (ids(Part("unlabeled", "u", listing(count, order))) for order in (None, mixed))
    assert first == second
    flat = [name for shard in first for name in shard]
    assert sorted(flat) == [f"u/{i:06d}.png" for i in range(count)], "every image, once"
    assert flat != sorted(flat), "and no neighbours left together"
    assert max(len(shard) for shard in first) <= 64


def test_no_shard_holds_one_class_only() -> None:
    """A folder comes class by class; 500 of each of two in shards of 64."""
    for shard in ids(Part("unlabeled", "u", listing(1000))):
        share = np.mean([int(name[2:8]) < 500 for name in shard])
        assert 0.2 < share < 0.8


def test_a_shard_of_a_large_file_does_not_reach_into_the_next() -> None:
    made = listing(1000, format="tar", files=4)  # 250 rows a file
    shards = list(shards_of(Part("unlabeled", "u", made), 100, seed=0))
    assert [len(shard) for shard in shards] == [83, 84, 83] * 4
    assert all(len(set(shard["path"].to_pylist())) == 1 for shard in shards)


def test_small_files_share_a_shard() -> None:
    made = listing(1000, format="tar", files=100)  # ten rows a file
    sizes = [len(shard) for shard in shards_of(Part("unlabeled", "u", made), 100, seed=0)]
    assert sum(sizes) == 1000
    assert min(sizes) >= 50


def test_a_spool_gives_back_what_it_was_given(tmp_path: Path) -> None:
    spool = Spool(ROWS, memory_rows=150)
    for table in listing(1000).rows.tables():
        spool.append(table)
    for _ in range(2):  # it may be read again
        assert spool.table()["image_id"].to_pylist() == [f"{i:06d}.png" for i in range(1000)]
    assert spool.num_rows == 1000


def test_hashes_are_stable() -> None:
    """Buckets of an old run must be those of a new one, on any machine."""
    import pyarrow as pa

    assert (
        manifest.hashes(pa.chunked_array([["a", "b"]])).tolist() == manifest.hashes(pa.chunked_array([["a"], ["b"]])).tolist()
    )
    assert int(manifest.hashes(pa.chunked_array([["unlabeled/1.png"]]))[0]) == EXPECTED


EXPECTED = 16729500783480596866
