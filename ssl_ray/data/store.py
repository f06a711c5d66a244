"""Images of the shards at hand, as training sees them: decoded once where the view allows it, with soft labels beside them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ssl_ray.artifacts import Corpus, PseudoLabels
from ssl_ray.data.labeler import LEAKED, test_hashes
from ssl_ray.data.leaks import content_hash
from ssl_ray.data.materialize import read_copied
from ssl_ray.data.shards import decode_all, read_encoded
from ssl_ray.errors import SourceError
from ssl_ray.storage import Folder
from ssl_ray.tasks.classification import probs_of
from ssl_ray.views.decode import Preprocess, open_rgb

BROKEN = 0.01
"""Share of a shard's unlabeled images that may be broken where no labelling has put them into quarantine."""


@dataclass(frozen=True)
class Entries:
    """What a stream shows in one epoch, image by image; an image with two copies stands here twice. int32 [m] each."""

    shard: np.ndarray
    row: np.ndarray
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.shard)


class ShardStore:
    """Images (and soft labels) of the shards at hand, decoded once where the view allows it; least recent out first."""

    def __init__(
        self,
        corpus: Corpus,
        splits: Sequence[str],
        needed: Entries,
        preprocess: Preprocess,
        pool: ThreadPoolExecutor,
        *,
        keep_encoded: bool,
        budget_mb: int,
        soft: PseudoLabels | None = None,
        copied: Folder | None = None,
        raw: bool = False,
    ):
        self._copied, self._raw = copied, raw
        self.replaced: set[tuple[int, int]] = set()  # shard and row of images that another one stands for
        self._corpus, self._preprocess, self._pool = corpus, preprocess, pool
        self._shards = {shard.shard: shard for split in splits for shard in corpus.shards(split)}
        self._rows = {int(shard): np.unique(needed.row[needed.shard == shard]) for shard in np.unique(needed.shard)}
        self._keep_encoded, self._budget, self._soft = keep_encoded, budget_mb * 2**20, soft
        self._held: OrderedDict[int, tuple[np.ndarray | list[bytes], np.ndarray | None, int]] = OrderedDict()

    def get(self, shard: int) -> tuple[np.ndarray, np.ndarray | list[bytes], np.ndarray | None]:
        """Rows held of a shard (int32 [k], ascending), their pixels uint8 [k, S, S, 3] or bytes, their probs [k, C]."""
        if shard not in self._held:
            self._held[shard] = self._load(shard)
            while len(self._held) > 1 and sum(size for *_, size in self._held.values()) > self._budget:
                self._held.popitem(last=False)
        self._held.move_to_end(shard)
        images, probs, _ = self._held[shard]
        return self._rows[shard], images, probs

    def _load(self, shard: int) -> tuple[np.ndarray | list[bytes], np.ndarray | None, int]:
        rows = self._rows[shard]
        if self._copied is None:
            data = read_encoded(self._corpus, self._shards[shard], rows, self._pool)
        else:
            data = read_copied(self._copied, shard, rows)
        images: np.ndarray | list[bytes]
        if self._raw:
            data = self._without_bad(shard, data)
        if self._keep_encoded:
            images, size = data, sum(len(item) for item in data)
        else:
            images, failures = decode_all(data, self._preprocess, self._pool)
            if failures:
                position, reason = failures[0]
                raise SourceError(f"image {self._name(shard, position)} {reason}; take it out and run --rerun images")
            size = images.nbytes
        probs = self._read_probs(shard, rows) if self._soft is not None else None
        return images, probs, size + (probs.nbytes if probs is not None else 0)

    def _name(self, shard: int, position: int) -> str:
        return str(self._corpus.rows(shard, ["image_id"])["image_id"][int(self._rows[shard][position])].as_py())

    def _without_bad(self, shard: int, data: list[bytes]) -> list[bytes]:
        """Another image of the shard, the next good one, for every image that is broken or is a test image too."""
        tests = test_hashes(self._corpus.path, self._corpus.record.computed)
        bad: dict[int, str] = {}

        def problem(item: bytes) -> str:
            if tests and content_hash(item) in tests:
                return LEAKED
            try:
                open_rgb(item)
            except ValueError as error:
                return str(error)
            return ""

        bad = {position: reason for position, reason in enumerate(self._pool.map(problem, data)) if reason}
        broken = [position for position, reason in bad.items() if reason != LEAKED]
        if len(broken) > max(1, BROKEN * len(data)) or len(bad) == len(data):
            position = next(iter(bad))
            raise SourceError(
                f"{len(bad)} of {len(data)} images of shard {shard} cannot be used, more than {BROKEN:.0%}; the first is "
                f"{self._name(shard, position)}, which {bad[position]}; take them out and run --rerun images"
            )
        self.replaced |= {(shard, position) for position in bad}
        good = [position for position in range(len(data)) if position not in bad]
        return [item if i not in bad else data[good[np.searchsorted(good, i) % len(good)]] for i, item in enumerate(data)]

    def _read_probs(self, shard: int, rows: np.ndarray) -> np.ndarray:
        assert self._soft is not None
        tables = [self._soft.read(file, self._soft.probs_columns) for file in self._soft.files if file.shard == shard]
        labelled = np.concatenate([table["row"].to_numpy() for table in tables])
        num_classes = len(self._corpus.classes)
        probs = np.concatenate([probs_of(table, num_classes) for table in tables])
        return probs[np.searchsorted(labelled, rows)]
