"""Kept images, copied into Parquet beside the selection: one file a shard, so that a restart sees what is missing."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from ssl_ray.artifacts import Corpus, PseudoLabels
from ssl_ray.cluster import ensure_ray, plain_errors, quiet_data
from ssl_ray.data.chosen import copies_in
from ssl_ray.data.labeler import open_corpus
from ssl_ray.data.shards import read_encoded
from ssl_ray.errors import DamagedError
from ssl_ray.filesystems import absolute
from ssl_ray.scale import Scale
from ssl_ray.selection import Decision, SelectionConfig
from ssl_ray.storage import Folder

COPIED = pa.schema([("row", pa.int32()), ("image", pa.binary())])


def read_copied(folder: Folder, shard: int, rows: np.ndarray) -> list[bytes]:
    """The encoded images of some rows of a shard (ascending), from the copies."""
    name = f"{shard:06d}.parquet"
    table = folder.read_table(name, schema=COPIED)
    found = np.searchsorted(table["row"].to_numpy(), rows)
    if not np.array_equal(table["row"].to_numpy()[np.minimum(found, len(table) - 1)], rows):
        raise folder.damaged(name, "it lacks images that the selection keeps")
    return list(table["image"].take(pa.array(found)).to_pylist())


def copy_shard(shard: int, images: str, computed: str, out: str, rows: np.ndarray) -> dict[str, int]:
    """Write `images/SSSSSS.parquet` with the rows of a shard that are kept."""
    corpus, target = open_corpus(images, computed), Folder(out) / "images"
    data = read_encoded(corpus, corpus.all_shards[shard], rows)
    table = pa.table({"row": rows.astype(np.int32), "image": pa.array(data, pa.binary())}, schema=COPIED)
    target.write_table(f"{shard:06d}.parquet", table, row_group_size=256)
    return {"materialized": len(rows), "bytes": sum(len(item) for item in data)}


def materialize(
    out: Folder, scale: Scale, *, images: Corpus, labels: PseudoLabels, decision: Decision, config: SelectionConfig
) -> dict[str, int]:
    """Copy every image that the student will see; on Ray, or in this process where the scale says so.

    Returns:
        How many images, and how many bytes.
    """
    target = out / "images"
    there = {name for name in target.names(".parquet") if _is_readable(target, name)}
    by_shard: dict[int, list[Any]] = {}
    for file in labels.files:
        by_shard.setdefault(file.shard, []).append(file)
    todo = [shard for shard in by_shard if f"{shard:06d}.parquet" not in there]

    def kept(shard: int) -> np.ndarray:
        parts = []
        for file in by_shard[shard]:
            row, _, copies = copies_in(
                labels, file, thresholds=decision.thresholds, copies=decision.copies, bins=config.bins, seed=config.seed
            )
            parts.append(row[copies > 0])
        return np.concatenate(parts)

    place = {"images": absolute(images.path), "computed": images.record.computed, "out": absolute(out.path)}
    if scale.label_actors_max == 0:
        with ThreadPoolExecutor(scale.decode_threads) as pool:
            for _ in pool.map(lambda shard: copy_shard(shard, rows=kept(shard), **place), todo):
                pass
    elif todo:
        _on_ray(scale, ({"shard": shard, "rows": kept(shard)} for shard in todo), place)
    total = {"materialized": 0, "bytes": 0}
    for name in target.names(".parquet"):
        table = target.read_table(name, ["row"])
        total["materialized"] += len(table)
    total["bytes"] = sum(int(info.size) for info in target.infos())
    return total


def _is_readable(copies: Folder, name: str) -> bool:
    """Return whether a file from an earlier call can be read; if not, it is written again."""
    try:
        copies.read_table(name, ["row"], COPIED)
    except DamagedError:
        return False
    return True


def _on_ray(scale: Scale, work: Iterable[dict[str, Any]], place: dict[str, str]) -> None:
    ensure_ray(scale)
    import ray

    quiet_data()
    copy = ray.remote(num_cpus=scale.decode_cpus, max_retries=5)(copy_shard)
    running: list[Any] = []
    with plain_errors():
        for item in work:  # rows of a few shards at a time are on their way, never those of all
            if len(running) >= 64:
                done, running = ray.wait(running, num_returns=1)
                ray.get(done)
            running.append(copy.remote(item["shard"], rows=item["rows"], **place))
        ray.get(running)
