"""Images of the shards at hand, as training sees them: decoded once where the view allows it, with soft labels beside them."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ssl_ray.artifacts import Corpus, PseudoLabels
from ssl_ray.data.labeler import LEAKED, test_hashes
from ssl_ray.data.leaks import content_hash
from ssl_ray.data.materialize import read_copied
from ssl_ray.data.shards import decode_all, decoding_of, read_encoded
from ssl_ray.errors import SourceError
from ssl_ray.settings.views import Preprocess
from ssl_ray.storage import Folder
from ssl_ray.tasks.classification import probs_of
from ssl_ray.views.decode import decoded

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
        self._copied, self._raw, self._decoding = copied, raw, decoding_of(corpus)
        self.replaced: set[tuple[int, int]] = set()  # shard and row of images that another one stands for
        self.loaded = 0  # images that were read, and decoded unless they are kept encoded; of a shard that went out, once more
        self.load_s = 0.0  # how long that took
        self._bad: dict[int, dict[int, str]] = {}
        self._corpus, self._preprocess, self._pool = corpus, preprocess, pool
        self._shards = {shard.shard: shard for split in splits for shard in corpus.shards(split)}
        self._rows = {int(shard): np.unique(needed.row[needed.shard == shard]) for shard in np.unique(needed.shard)}
        self._keep_encoded, self._budget, self._soft = keep_encoded, budget_mb * 2**20, soft
        self._held: OrderedDict[int, tuple[np.ndarray | list[bytes], np.ndarray | None, int]] = OrderedDict()

    def get(self, shard: int) -> tuple[np.ndarray, np.ndarray | list[bytes], np.ndarray | None]:
        """Rows held of a shard (int32 [k], ascending), their pixels uint8 [k, S, S, 3] or bytes, their probs [k, C]."""
        if shard not in self._held:
            begin = time.perf_counter()
            self._held[shard] = self._load(shard)
            self.loaded, self.load_s = self.loaded + len(self._rows[shard]), self.load_s + time.perf_counter() - begin
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
            images, failures = decode_all(data, self._preprocess, self._pool, decoding=self._decoding)
            if failures:
                position, reason = failures[0]
                raise SourceError(
                    f"image {self._name(shard, int(rows[position]))} {reason}; take it out and run --rerun images"
                )
            size = images.nbytes
        probs = self._read_probs(shard, rows) if self._soft is not None else None
        return images, probs, size + (probs.nbytes if probs is not None else 0)

    def _name(self, shard: int, row: int) -> str:
        return str(self._corpus.rows(shard, ["image_id"])["image_id"][row].as_py())

    def _without_bad(self, shard: int, data: list[bytes]) -> list[bytes]:
        """Another image of the shard, the next good one, for every image that is broken or is a test image too.

        All is decided over the whole shard, so that it does not depend on the rows that this worker holds.
        """
        if shard not in self._bad:
            self._bad[shard] = self._examined(shard) if any(self._pool.map(self._problem, data)) else {}
        bad, rows, total = self._bad[shard], self._rows[shard], self._shards[shard].num_rows
        for position, row in enumerate(rows.tolist()):
            if row in bad:
                other = next(r % total for r in range(row + 1, row + total) if r % total not in bad)
                data[position] = read_encoded(self._corpus, self._shards[shard], np.array([other]))[0]
                self.replaced.add((shard, row))
        return data

    def _problem(self, item: bytes) -> str:
        """Why an image cannot be used; nothing, if it can."""
        tests = test_hashes(self._corpus.path, self._corpus.record.computed)
        if tests and content_hash(item) in tests:
            return LEAKED
        try:
            with decoded(item, self._decoding):
                return ""
        except ValueError as error:
            return str(error)

    def _examined(self, shard: int) -> dict[int, str]:
        """Rows of a shard that cannot be used, and why.

        Raises:
            SourceError: too many are broken, or no image is left.
        """
        total = self._shards[shard].num_rows
        data = read_encoded(self._corpus, self._shards[shard], np.arange(total), self._pool)
        bad = {row: reason for row, reason in enumerate(self._pool.map(self._problem, data)) if reason}
        broken = [row for row, reason in bad.items() if reason != LEAKED]
        if len(broken) > max(1, BROKEN * total):
            raise SourceError(
                f"{len(broken)} of {total} images of shard {shard} cannot be decoded, more than {BROKEN:.0%}; the first is "
                f"{self._name(shard, broken[0])}, which {bad[broken[0]]}; take them out and run --rerun images"
            )
        if len(bad) == total:
            raise SourceError(f"all images of shard {shard} are test images too; take them out and run --rerun images")
        return bad

    def _read_probs(self, shard: int, rows: np.ndarray) -> np.ndarray:
        assert self._soft is not None
        tables = [self._soft.read(file, self._soft.probs_columns) for file in self._soft.files if file.shard == shard]
        labelled = np.concatenate([table["row"].to_numpy() for table in tables])
        num_classes = len(self._soft.results["classes"])
        probs = np.concatenate([probs_of(table, num_classes) for table in tables])
        found = np.searchsorted(labelled, rows)
        if not np.array_equal(labelled[np.minimum(found, len(labelled) - 1)], rows):
            raise self._soft.labels.damaged(f"{shard:06d}-*.parquet", "it lacks rows that the selection keeps")
        return probs[found]
