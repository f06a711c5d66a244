"""Training batches of images with boxes or masks: people's or a model's, with the views made while decoding."""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Literal

import numpy as np
import torch

from ssl_ray.artifacts import Corpus, PseudoLabels, Selection
from ssl_ray.data.loader import StreamConfig, entries_of, make_lanes
from ssl_ray.data.shards import decoding_of
from ssl_ray.data.store import Entries, ShardStore
from ssl_ray.errors import SourceError
from ssl_ray.label_files import LabelFile, list_label_files
from ssl_ray.randomness import generator, held_lanes
from ssl_ray.schema import NO_LABEL
from ssl_ray.settings.views import AugmentConfig, Preprocess
from ssl_ray.storage import Folder
from ssl_ray.tasks import boxes, masks
from ssl_ray.tasks.stored import Stored, opened, stored
from ssl_ray.views.decode import decoded
from ssl_ray.views.scenes import Scene, view

SceneTask = Literal["detection", "segmentation"]


class TargetStore:
    """What stands in the images of the shards at hand, from files like those of labels; least recent out first."""

    def __init__(self, folder: Folder, task: SceneTask, thresholds: np.ndarray | None, keep: int):
        """
        Args:
            thresholds: float64 [C], of the scores of boxes or the certainty of pixels; None for what people drew.
            keep: shards.
        """
        self._folder, self._task, self._thresholds, self._keep = folder, task, thresholds, keep
        self._files: dict[int, list[LabelFile]] = {}
        for file in list_label_files(folder):
            self._files.setdefault(file.shard, []).append(file)
        self._held: OrderedDict[int, dict[int, Any]] = OrderedDict()

    def rows(self, shard: int) -> dict[int, Any]:
        """What `seen` takes, for every labeled row of a shard."""
        if shard not in self._held:
            found: dict[int, Any] = {}
            for file in self._files.get(shard, []):
                table = file.read(self._folder)
                found |= dict(zip(table["row"].to_pylist(), stored(self._task, table), strict=True))
            self._held[shard] = found
            while len(self._held) > self._keep:
                self._held.popitem(last=False)
        self._held.move_to_end(shard)
        return self._held[shard]

    def seen(self, held: Stored) -> boxes.Boxes | np.ndarray:
        """What the student sees of it, boxes or a mask uint8 [H, W]: crowds and unsure boxes are left out, unsure pixels count
        as none."""
        item = opened(held)
        if isinstance(item, masks.Mask):
            return item.classes if self._thresholds is None else masks.over_thresholds(item, self._thresholds)
        good = ~item.ignore if self._thresholds is None else item.scores >= self._thresholds[item.labels]
        return item.taken(good)


class SceneStream:
    """A worker's part of one stream: `batch(step)` gives uint8 views and what stands in them."""

    def __init__(
        self,
        config: StreamConfig,
        corpus: Corpus,
        targets: TargetStore,
        augment: AugmentConfig,
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
        self._targets, self._augment, self._preprocess, self._pool = targets, augment, preprocess, pool
        self._decoding = decoding_of(corpus)
        needed = entries_of(config.entries, self._lanes)
        self._store = ShardStore(
            corpus, config.splits, needed, preprocess, pool, keep_encoded=True, budget_mb=cache_mb, copied=config.copied
        )
        self.rows = np.arange(held.start * self._per_lane, held.stop * self._per_lane)  # in the global batch

    @property
    def replaced(self) -> int:
        return len(self._store.replaced)

    @property
    def loading(self) -> tuple[int, float]:
        return self._store.loaded, self._store.load_s

    def batch(self, step: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """uint8 [n, S, S, 3], and what stands in the views, as `methods.scenes.Found` has it."""
        begin = step * self._per_lane
        index = np.concatenate([lane.take(begin, self._per_lane) for lane in self._lanes])
        entries = self.config.entries
        shards, rows = entries.shard[index], entries.row[index]
        jobs: list[Any] = [None] * len(index)
        for shard in np.unique(shards):
            here = np.flatnonzero(shards == shard)
            held, encoded, _ = self._store.get(int(shard))
            targets = self._targets.rows(int(shard))
            for i, k in zip(here, np.searchsorted(held, rows[here]), strict=True):
                jobs[i] = (step, int(self.rows[i]), encoded[k], targets[int(rows[i])])
        scenes = list(self._pool.map(self._view, jobs))
        images = torch.stack([scene.image for scene in scenes]).permute(0, 2, 3, 1).contiguous().numpy()
        if scenes[0].mask is not None:
            return images, {"mask": torch.stack([_known(scene.mask) for scene in scenes]).numpy()}
        found = [(_known(scene.boxes), _known(scene.labels)) for scene in scenes]
        return images, {
            "boxes": torch.cat([pair[0] for pair in found]).numpy(),
            "labels": torch.cat([pair[1] for pair in found]).numpy(),
            "counts": np.array([len(pair[1]) for pair in found], np.int64),
        }

    def _view(self, job: tuple[int, int, bytes, Any]) -> Scene:
        step, position, data, held = job
        target = self._targets.seen(held)
        with ExitStack() as stack:  # the view is computed at full size, so it counts as memory in use
            try:
                pixels = np.array(stack.enter_context(decoded(data, self._decoding)))
            except ValueError as error:
                raise SourceError(
                    f"an image of the stream {self.config.name} {error}; take it out and run --rerun images"
                ) from None
            image = torch.from_numpy(pixels).permute(2, 0, 1)
            if isinstance(target, np.ndarray):
                scene = Scene(image, mask=torch.from_numpy(target.copy()))
            else:
                scene = Scene(image, torch.from_numpy(target.boxes.copy()), torch.from_numpy(target.labels.astype(np.int64)))
            return view(scene, self._augment, self._preprocess, generator(*self._address, "view", step, position))


def _known(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None
    return tensor


def pseudo_images(labels: PseudoLabels, selection: Selection) -> Entries:
    """Images that a labeler answered for: all of them, or, as the selection says, only those with a box over its threshold.

    Raises:
        SourceError: none is left.
    """
    keep_empty = bool(selection.record.config.get("keep_empty", True))
    shards, rows = [], []
    for file in labels.files:
        table = labels.read(file, ["row"] if keep_empty else None)
        row = table["row"].to_numpy()
        if not keep_empty:
            items = boxes.rows_of(table)
            row = row[[bool((item.scores >= selection.thresholds[item.labels]).any()) for item in items]]
        rows.append(row)
        shards.append(np.full(len(row), file.shard, np.int32))
    if not sum(len(part) for part in rows):
        raise SourceError("the selection keeps no image; lower selection.min_confidence")
    row = np.concatenate(rows)
    return Entries(np.concatenate(shards), row, np.full(len(row), NO_LABEL, np.int32))
