"""Training batches from shards: labeled images, and pseudo-labeled ones with their labels beside them.

The global batch is cut into *lanes*. A lane is an endless stream of its own over its own part of the data, and a worker
holds some lanes whole. So the batches are the same on any number of workers, a restart finds its place by arithmetic, and
no worker reads another one's shards. The number of lanes belongs to the recipe.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from ssl_ray.artifacts import Corpus, PseudoLabels, Selection
from ssl_ray.data.chosen import copies_in
from ssl_ray.data.shards import decoding_of
from ssl_ray.data.store import Entries, ShardStore
from ssl_ray.errors import SourceError
from ssl_ray.machine import check_pixels
from ssl_ray.randomness import generator, held_lanes
from ssl_ray.schema import NO_LABEL
from ssl_ray.selection import sharpen
from ssl_ray.settings.views import Preprocess
from ssl_ray.storage import Folder
from ssl_ray.subset import SubsetConfig, draw_subset
from ssl_ray.views.decode import decoded, resized_crop

WINDOW = 4
"""Shards of a lane that are shuffled into each other."""


def labeled_entries(corpus: Corpus, subset: SubsetConfig | None = None) -> Entries:
    """The labeled training images, or some of them.

    Raises:
        SourceError: no labels, fewer than asked for, or several an image.
    """
    if corpus.label_sets is not None:
        raise SourceError(
            "images with several labels each serve probes of an encoder, and no training; give one label an image"
        )
    everything = image_entries(corpus, ("train",))
    label = corpus.column("train", "label").astype(np.int32)
    chosen = draw_subset(label, subset)
    return Entries(everything.shard[chosen], everything.row[chosen], label[chosen])


def image_entries(corpus: Corpus, splits: Sequence[str]) -> Entries:
    """Every image of some splits, without labels."""
    shards = [shard for split in splits for shard in corpus.shards(split)]
    if not shards:
        raise SourceError(f"the corpus has no images in its splits {', '.join(splits)}")
    number = np.concatenate([np.full(shard.num_rows, shard.shard, np.int32) for shard in shards])
    row = np.concatenate([np.arange(shard.num_rows, dtype=np.int32) for shard in shards])
    return Entries(number, row, np.full(len(row), NO_LABEL, np.int32))


def pseudo_entries(labels: PseudoLabels, selection: Selection) -> Entries:
    """Rows that the selection keeps, as often as it copies them. Reads label columns only, no probabilities."""
    bins = int(selection.record.config["bins"])
    decided: dict[str, Any] = {
        "thresholds": selection.thresholds,
        "copies": selection.copies,
        "bins": bins,
        "seed": selection.seed,
    }
    shards, rows, classes = [], [], []
    for file in labels.files:
        row, label, copies = copies_in(labels, file, **decided)
        rows.append(np.repeat(row, copies))
        classes.append(np.repeat(label, copies))
        shards.append(np.full(int(copies.sum()), file.shard, np.int32))
    if not sum(len(part) for part in rows):
        raise SourceError("the selection keeps no pseudo-label; lower selection.min_confidence")
    return Entries(np.concatenate(shards), np.concatenate(rows), np.concatenate(classes))


class Lane:
    """An endless, shuffled and seekable stream of entry indices."""

    def __init__(self, index: np.ndarray, shard: np.ndarray, address: tuple[int | str, ...]):
        """
        Args:
            index: entries that belong to the lane, int64 [m], m > 0.
            shard: their shards, int32 [m].
            address: of its randomness.
        """
        self.index, self._shard, self._address = index, shard, address
        self._epoch, self._order = -1, index

    def take(self, position: int, count: int) -> np.ndarray:
        """Entries [position, position + count) of the stream, int64 [count]."""
        parts = []
        while count:
            epoch, offset = divmod(position, len(self.index))
            if epoch != self._epoch:
                self._epoch, self._order = epoch, self._shuffled(epoch)
            part = self._order[offset : offset + count]
            parts.append(part)
            position, count = position + len(part), count - len(part)
        return np.concatenate(parts)

    def _shuffled(self, epoch: int) -> np.ndarray:
        draw = generator(*self._address, epoch)
        shards = draw.permutation(np.unique(self._shard))
        if len(shards) <= WINDOW:
            return self.index[draw.permutation(len(self.index))]
        rank = np.empty(int(shards.max()) + 1, np.int64)
        rank[shards] = np.arange(len(shards)) // WINDOW  # shards of one window are shuffled into each other
        return self.index[np.lexsort((draw.random(len(self.index)), rank[self._shard]))]


def make_lanes(entries: Entries, lanes: int, held: range, address: tuple[int | str, ...]) -> list[Lane]:
    """The lanes in `held`. Whole shards are dealt where there are enough of them, single images otherwise."""
    shards = np.unique(entries.shard)
    everything = np.arange(len(entries))
    if len(everything) < lanes:  # fewer images than lanes: some are shown by several lanes
        everything = np.resize(everything, lanes)
    made = []
    for lane in held:
        if len(shards) >= lanes * WINDOW:
            index = everything[np.isin(entries.shard, shards[lane::lanes])]
        else:
            index = everything[lane::lanes]
        made.append(Lane(index, entries.shard[index], (*address, lane)))
    return made


def entries_of(entries: Entries, lanes: Sequence[Lane]) -> Entries:
    """What some lanes show, each entry once."""
    mine = np.unique(np.concatenate([lane.index for lane in lanes]))
    return Entries(entries.shard[mine], entries.row[mine], entries.label[mine])


@dataclass(frozen=True)
class StreamConfig:
    """One stream of a training run: which images, how many a step, and how their targets are made."""

    name: Literal["labeled", "pseudo", "images", "beside"]
    entries: Entries
    splits: tuple[str, ...]
    per_step: int  # in the global batch
    soft: PseudoLabels | None = None
    temperature: float = 1.0
    crops: tuple[float, int] | None = None  # Inception crops drawn while decoding: least area, how many of an image
    copied: Folder | None = None  # the images of the stream, if a selection materialized them
    targets: bool = True  # False: somebody else makes them, of pseudo-labeled images
    raw: bool = False  # no labelling has looked at the images: some may be broken, or test images


class Stream:
    """A worker's part of one stream: `batch(step)` gives uint8 images and targets."""

    def __init__(
        self,
        config: StreamConfig,
        corpus: Corpus,
        preprocess: Preprocess,
        *,
        seed: int,
        lanes: int,
        rank: int,
        workers: int,
        cache_mb: int,
        pool: ThreadPoolExecutor,
    ):
        held = held_lanes(lanes, rank, workers)
        self.config = config
        self._address: tuple[int | str, ...] = (seed, config.name)
        self._lanes = make_lanes(config.entries, lanes, held, (*self._address, "order"))
        self._per_lane = config.per_step // lanes
        self._preprocess, self._pool, self._decoding = preprocess, pool, decoding_of(corpus)
        needed = entries_of(config.entries, self._lanes)
        self._store = ShardStore(
            corpus, config.splits, needed, preprocess, pool,
            keep_encoded=config.crops is not None, budget_mb=cache_mb, soft=config.soft, copied=config.copied, raw=config.raw,
        )  # fmt: skip
        self.rows = np.arange(held.start * self._per_lane, held.stop * self._per_lane)  # in the global batch

    @property
    def replaced(self) -> int:
        """Images so far that were broken, or test images too, and for which others were shown."""
        return len(self._store.replaced)

    @property
    def loading(self) -> tuple[int, float]:
        """Images that were read so far, and the seconds that it took."""
        return self._store.loaded, self._store.load_s

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [n, S, S, 3], and targets: int64 [n], or float32 [n, C] for soft labels. With several crops of an image,
        all first ones stand before all second ones."""
        begin = step * self._per_lane
        index = np.concatenate([lane.take(begin, self._per_lane) for lane in self._lanes])
        entries, size = self.config.entries, self._preprocess.size
        count = 1 if self.config.crops is None else self.config.crops[1]
        check_pixels(count * len(index), size, "batch or preprocess.size")
        images = np.empty((count * len(index), size, size, 3), np.uint8)
        soft: np.ndarray | None = None
        shards = entries.shard[index]
        for shard in np.unique(shards):
            here = np.flatnonzero(shards == shard)
            rows, pixels, probs = self._store.get(int(shard))
            found = np.searchsorted(rows, entries.row[index[here]])
            if isinstance(pixels, np.ndarray):
                images[here] = pixels[found]
            else:
                encoded = pixels
                jobs = [(step, int(self.rows[i]), encoded[k]) for i, k in zip(here, found, strict=True)]
                for i, crops in zip(here, self._pool.map(self._crop, jobs), strict=True):
                    for number, crop in enumerate(crops):
                        images[number * len(index) + i] = crop
            if probs is not None:
                soft = np.empty((len(index), probs.shape[1]), np.float32) if soft is None else soft
                soft[here] = sharpen(probs[found], self.config.temperature)
        return images, soft if soft is not None else entries.label[index].astype(np.int64)

    def _crop(self, job: tuple[int, int, bytes]) -> list[np.ndarray]:
        step, position, data = job
        assert self.config.crops is not None
        least, count = self.config.crops
        draws = [generator(*self._address, "crop", step, position, *([number] if number else [])) for number in range(count)]
        try:
            with decoded(data, self._decoding) as image:
                return [resized_crop(image, self._preprocess.size, draw, least) for draw in draws]
        except ValueError as error:
            raise SourceError(
                f"an image of the stream {self.config.name} {error}; take it out and run --rerun images"
            ) from None


@dataclass(frozen=True)
class HostBatch:
    """One worker's part of a step's batch; labeled images stand first."""

    images: np.ndarray  # uint8 [n, S, S, 3]; [2 n, S, S, 3] with two crops of every image
    labeled: np.ndarray | dict[str, np.ndarray] | None  # int64 [n_labeled], or what stands in the images, by name
    pseudo: np.ndarray | dict[str, np.ndarray] | None  # int64 [n_pseudo], float32 [n_pseudo, C], or as above
    rows: np.ndarray  # int64 [n], positions in the global batch
    total: int  # images in the global batch
    beside: HostBatch | None = None  # images of another set in the same step, with labels


class Streams(Protocol):
    """What a batch is put together from: `Stream`, or one of images with boxes or masks."""

    config: StreamConfig
    rows: np.ndarray

    @property
    def replaced(self) -> int: ...

    @property
    def loading(self) -> tuple[int, float]: ...

    def batch(self, step: int) -> tuple[np.ndarray, Any]: ...


def host_batches(streams: Sequence[Streams], start: int, stop: int) -> Iterator[HostBatch]:
    """Batches of steps [start, stop), made by a thread two steps ahead."""
    ready: queue.Queue[HostBatch | BaseException] = queue.Queue(maxsize=2)
    stopped = threading.Event()

    def put(item: HostBatch | BaseException) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for step in range(start, stop):
                if not put(assemble(streams, step)):
                    return
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        for _ in range(start, stop):
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()


def assemble(streams: Sequence[Streams], step: int) -> HostBatch:
    images, rows, targets, total = [], [], {}, 0
    beside: HostBatch | None = None
    for stream in streams:
        pixels, target = stream.batch(step)
        if stream.config.name == "beside":
            beside = HostBatch(pixels, target, None, stream.rows, stream.config.per_step)
            continue
        images.append(pixels)
        rows.append(stream.rows + total)
        if stream.config.targets:
            targets[stream.config.name] = target
        total += stream.config.per_step
    known = targets.get("labeled"), targets.get("pseudo")
    return HostBatch(np.concatenate(images), *known, np.concatenate(rows), total, beside)
