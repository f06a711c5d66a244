"""What a labelling actor does: images in, label files out. Knows nothing of Ray; runs in an actor or in the job itself.

Decoding is *fused* (in the actor, while another call of it has the model) or *split* (in tasks of their own, for a GPU with
few CPUs beside it). Both give the same rows.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ssl_ray.artifacts import Corpus
from ssl_ray.data.answers import Output, answers_of, chosen
from ssl_ray.data.leaks import content_hash
from ssl_ray.data.shards import DELETED, Encoded, as_found, decode_all, decoding_of, manifest_rows, read_rows
from ssl_ray.label_files import LabelFile
from ssl_ray.machine import use_threads
from ssl_ray.scale import device_for
from ssl_ray.schema import QUARANTINE, TEST_HASHES
from ssl_ray.settings.views import Preprocess
from ssl_ray.storage import Folder

Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class LabelerSettings:
    """Plain values, so that they travel to any process."""

    images: str  # folder of the corpus
    model: str  # folder of the checkpoint
    out: str
    batch: int  # images of one forward pass; 0: found by trial
    threads: int
    device: str
    precision: Precision = "auto"
    output: Output = "labels"
    top_k: int | None = None
    layer: dict[str, Any] | None = None  # of the features
    scales: tuple[float, ...] = (1.0,)  # boxes and masks: sizes of an image whose answers are put together
    as_found: bool = False  # read files that changed since they were listed; leave out deleted ones
    leaks: bool = True  # quarantine unlabeled images that are also test images
    computed: str = ""  # which computation the corpus is: a worker that lives on must not keep an older one


@dataclass
class Decoded:
    """Some rows of a range: pixels where there are any, reasons where there are none."""

    rows: np.ndarray  # int32 [n], ascending
    pixels: np.ndarray  # uint8 [n, S, S, 3]
    sizes: np.ndarray  # int32 [n, 2], width and height that the images came with
    reasons: dict[int, str] = field(default_factory=dict)  # position -> why it is not an image


class Clock:
    """Where the time goes, in seconds by kind of work; threads add up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    def add(self, name: str, begin: float) -> None:
        with self._lock:
            self.seconds[name] += time.perf_counter() - begin


@lru_cache(maxsize=4)
def open_corpus(path: str, computed: str) -> Corpus:
    return Corpus(path)


@lru_cache(maxsize=4)
def test_hashes(path: str, computed: str) -> frozenset[bytes]:
    """Content hashes of the test images of a corpus; empty where leaks are not looked for."""
    folder = Folder(path)
    if not folder.exists("test_hashes.parquet"):
        return frozenset()
    return frozenset(folder.read_table("test_hashes.parquet", ["hash"], TEST_HASHES)["hash"].to_pylist())


def decoded_batches(
    settings: LabelerSettings, file: LabelFile, batch: int, preprocess: Preprocess, pool: ThreadPoolExecutor, clock: Clock
) -> Iterator[Decoded]:
    """A range, read and decoded batch by batch."""
    corpus = open_corpus(settings.images, settings.computed)
    shard = corpus.all_shards[file.shard]
    tests = test_hashes(settings.images, settings.computed) if settings.leaks else frozenset()
    everything = np.arange(file.start, file.stop)
    manifest = manifest_rows(corpus, shard, everything if len(everything) < shard.num_rows else np.arange(shard.num_rows))
    # A row group is read once, not once a batch; single files and tar members come as they are needed.
    step = len(everything) if shard.format == "parquet" else batch
    for start in range(0, len(everything), step):
        begin = time.perf_counter()
        data = read_rows(manifest.slice(start, step), shard.format, shard.image_column, pool)
        clock.add("read", begin)
        for inner in range(0, len(data), batch):
            begin = time.perf_counter()
            piece = data[inner : inner + batch]
            sizes = np.zeros((len(piece), 2), np.int32)
            if settings.as_found:
                piece = [as_found(item) for item in piece]
            pixels, failures = decode_all(piece, preprocess, pool, sizes, decoding=decoding_of(corpus))
            reasons = dict(failures) | _leaked(piece, tests)
            if settings.as_found:
                reasons = {position: TAKEN_OUT if reason == DELETED else reason for position, reason in reasons.items()}
            clock.add("decode", begin)
            first = file.start + start + inner
            yield Decoded(np.arange(first, first + len(piece), dtype=np.int32), pixels, sizes, reasons)


def _leaked(data: list[Encoded], tests: frozenset[bytes]) -> dict[int, str]:
    if not tests:
        return {}
    return {
        position: LEAKED
        for position, item in enumerate(data)
        if isinstance(item, bytes) and item and content_hash(item) in tests
    }


LEAKED = "has the same bytes as a test image"
"""Such images are left out of the labels, and do not count against the budget of unreadable ones."""

TAKEN_OUT = "was taken out since it was listed"
"""Reason for images that were deleted. An evaluation leaves them out and counts them."""

NOT_FINITE = "gave the model numbers that are not finite"
"""Nor can such an image be labeled or clustered."""


class Labeler:
    """The un-noised model: EMA weights, eval mode, no augmentation. Several threads may call it; they take turns at the
    model, so that one decodes while the other predicts."""

    def __init__(self, settings: LabelerSettings):
        from ssl_ray.models import load_model
        from ssl_ray.settings.nets import LayerConfig

        threads = use_threads(settings.threads, "scale.label_threads")
        self.settings = settings
        device = device_for(float(settings.device == "cuda"), "scale.label_gpus")
        self.model = load_model(settings.model).to(device)
        self.model.set_precision(settings.precision)
        if settings.layer is not None:
            self.model.layer = LayerConfig.model_validate(settings.layer)
        if self.model.task != "classification":
            self.model.scales = tuple(settings.scales)
        self.batch = settings.batch or self.model.find_batch()
        self._answers = answers_of(self.model, settings.output, settings.top_k)
        self._turn = threading.Lock()
        self._pool = ThreadPoolExecutor(threads + 1, thread_name_prefix="decode")
        self._corpus = open_corpus(settings.images, settings.computed)
        out = Folder(settings.out)
        self._labels, self._quarantine = out / settings.output, out / "quarantine"

    def fused(self, file: LabelFile) -> dict[str, Any]:
        """Read, decode, predict, write one range; or nothing, if an earlier try of the same task has."""
        begin, clock = time.perf_counter(), Clock()
        if self._labels.holds_file(file.name):
            return {"rows": file.stop - file.start, "quarantined": 0, "seconds": 0.0, **_zero(clock)}
        batches = decoded_batches(self.settings, file, self.batch, self.model.preprocess, self._pool, clock)
        bad = self._write(file, batches, clock)
        return {"rows": file.stop - file.start, "quarantined": bad, "seconds": time.perf_counter() - begin, **_zero(clock)}

    def split(self, shard: int, decoded: Decoded) -> dict[str, Any]:
        """Predict and write rows that a task decoded: a whole range, or what Ray made of it; the rows name the file."""
        begin, clock = time.perf_counter(), Clock()
        file = LabelFile(shard, int(decoded.rows[0]), int(decoded.rows[-1]) + 1)

        def pieces() -> Iterator[Decoded]:
            for start in range(0, len(decoded.rows), self.batch):
                stop = min(start + self.batch, len(decoded.rows))
                reasons = {i - start: reason for i, reason in decoded.reasons.items() if start <= i < stop}
                yield Decoded(decoded.rows[start:stop], decoded.pixels[start:stop], decoded.sizes[start:stop], reasons)

        bad = self._write(file, pieces(), clock)
        return {"rows": file.stop - file.start, "quarantined": bad, "seconds": time.perf_counter() - begin, **_zero(clock)}

    def _write(self, file: LabelFile, batches: Iterator[Decoded], clock: Clock) -> int:
        ids = self._corpus.rows(file.shard, ["image_id"])["image_id"].combine_chunks()
        ids = ids.chunk(0) if isinstance(ids, pa.ChunkedArray) else ids
        tables, bad, left_out = [], [], 0
        for piece in batches:
            good = np.array([i for i in range(len(piece.rows)) if i not in piece.reasons], np.int64)
            for i, reason in piece.reasons.items():
                bad.append((ids[int(piece.rows[i])].as_py(), file.shard, int(piece.rows[i]), reason))
                left_out += reason in (LEAKED, TAKEN_OUT)
            if len(good):
                pixels = piece.pixels if len(good) == len(piece.rows) else piece.pixels[good]
                with self._turn:
                    begin = time.perf_counter()
                    found = self._answers.compute(pixels, piece.sizes[good], self.batch)
                    clock.add("predict", begin)
                finite = self._answers.finite(found)
                if not finite.all():
                    bad += [(ids[int(row)].as_py(), file.shard, int(row), NOT_FINITE) for row in piece.rows[good[~finite]]]
                    good, found = good[finite], chosen(found, finite)
                rows = piece.rows[good]
                tables.append(self._answers.columns(ids.take(pa.array(rows)), file.shard, rows, found))
        begin = time.perf_counter()
        if bad:  # before the label file, which says that the range is done
            aside = [dict(zip(QUARANTINE.names, row, strict=True)) for row in sorted(bad, key=lambda row: row[2])]
            self._quarantine.write_table(file.name, pa.Table.from_pylist(aside, QUARANTINE))
        if not tables:  # every image of the range is in quarantine
            size = self.model.preprocess.size
            blank, sizes = np.zeros((1, size, size, 3), np.uint8), np.full((1, 2), size, np.int32)
            found = self._answers.compute(blank, sizes, self.batch)
            tables = [self._answers.columns(ids[:1], file.shard, np.zeros(1, np.int32), found).slice(0, 0)]
        self._labels.write_table(file.name, pa.concat_tables(tables))
        clock.add("write", begin)
        return len(bad) - left_out


def _zero(clock: Clock) -> dict[str, float]:
    return {f"{name}_s": clock.seconds[name] for name in ("read", "decode", "predict", "write")}


def to_block(shard: int, decoded: Decoded) -> dict[str, np.ndarray]:
    """Decoded rows as columns, for the object store."""
    reasons = np.array([decoded.reasons.get(i, "") for i in range(len(decoded.rows))], dtype=object)
    return {
        "shard": np.full(len(decoded.rows), shard, np.int32),
        "row": decoded.rows,
        "reason": reasons,
        "pixels": decoded.pixels,
        "width": decoded.sizes[:, 0],
        "height": decoded.sizes[:, 1],
    }


def from_block(block: dict[str, np.ndarray]) -> Iterator[tuple[int, Decoded]]:
    """Columns back to runs of rows that follow each other in one shard."""
    shard, row = block["shard"], block["row"]
    edges = [0, *(np.flatnonzero((np.diff(shard) != 0) | (np.diff(row) != 1)) + 1), len(row)]
    for start, stop in pairwise(edges):
        if stop > start:
            reasons = {i: str(text) for i, text in enumerate(block["reason"][start:stop]) if text}
            sizes = np.stack([block["width"][start:stop], block["height"][start:stop]], axis=1)
            yield int(shard[start]), Decoded(row[start:stop], block["pixels"][start:stop], sizes, reasons)
