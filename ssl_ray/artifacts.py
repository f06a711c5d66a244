"""What stages hand to each other: folders with Parquet or safetensors and a `_record.json`, written last.

The presence of the record means that the artifact is whole. Everything in it opens with any Parquet reader.
"""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ssl_ray.errors import ConfigError
from ssl_ray.schema import MANIFEST_SHARDS
from ssl_ray.storage import Folder, patient, resolve

RECORD = "_record.json"
STARTED = "_started.json"


@dataclass(frozen=True)
class Record:
    """What was computed, from what, with which result, and at which cost."""

    kind: str
    stage: str
    name: str
    fingerprint: str
    config: dict[str, Any]
    inputs: dict[str, Any]  # name -> fingerprint, or a plain value
    results: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    commit: str = ""
    wall_s: float = 0.0
    computed: str = ""  # which computation this is: another one after every --rerun

    def save(self, folder: Folder) -> None:
        folder.write_json(RECORD, asdict(self))

    @staticmethod
    def load(folder: Folder) -> Record | None:
        return Record(**folder.read_json(RECORD)) if folder.exists(RECORD) else None


class Artifact:
    """A finished stage's folder. `kind` is the class's name."""

    kinds: ClassVar[dict[str, type[Artifact]]] = {}

    def __init_subclass__(cls) -> None:
        Artifact.kinds[cls.__name__] = cls

    def __init__(self, path: str):
        self.folder = Folder(path)
        record = Record.load(self.folder)
        if record is None:
            why = f"holds no {RECORD}: the stage that writes it did not finish" if self.folder.exists() else "does not exist"
            raise FileNotFoundError(f"{path} {why}")
        self.record = record

    @property
    def path(self) -> str:
        return self.folder.path

    @property
    def fingerprint(self) -> str:
        return self.record.fingerprint

    @property
    def results(self) -> dict[str, Any]:
        return self.record.results


@dataclass(frozen=True)
class Shard:
    """A piece of work: some thousand images of one split."""

    shard: int
    split: str
    format: str
    num_rows: int
    image_column: str


class Corpus(Artifact):
    """Which images exist, in which shards, with ids, splits and labels. The pixels stay where they are."""

    @property
    def classes(self) -> list[str]:
        return list(self.results["classes"])

    @property
    def label_sets(self) -> list[list[int]] | None:
        """Where an image may have several labels: the classes that each value of the column `label` stands for."""
        found: list[list[int]] | None = self.results.get("label_sets")
        return found

    @property
    def targets(self) -> Folder:
        """Where images have boxes or masks: files that are named as label files are, for all labeled, test and validation
        images."""
        return self.folder / "targets"

    @property
    def truth(self) -> Folder:
        """The same of unlabeled images whose labels were hidden; training never reads it."""
        return self.folder / "truth"

    @property
    def task(self) -> str:
        """classification, detection or segmentation."""
        return str(self.results.get("task", "classification"))

    @cached_property
    def all_shards(self) -> list[Shard]:
        return [Shard(**row) for row in self.folder.read_table("shards.parquet").to_pylist()]

    def shards(self, split: str) -> list[Shard]:
        return [shard for shard in self.all_shards if shard.split == split]

    def num_images(self, split: str) -> int:
        return sum(shard.num_rows for shard in self.shards(split))

    def _manifest(self, part: int) -> pq.ParquetFile:
        if part not in self._opened:
            if len(self._opened) >= 8:  # readers go through shards in order; an old part does not come back soon
                self._opened.pop(next(iter(self._opened))).close()
            filesystem, path = resolve(self.folder.file(f"manifest/{part:06d}.parquet"))
            self._opened[part] = patient(self.path, lambda: pq.ParquetFile(path, filesystem=filesystem))
        return self._opened[part]

    @cached_property
    def _opened(self) -> dict[int, pq.ParquetFile]:
        return {}

    @cached_property
    def _reading(self) -> threading.Lock:
        return threading.Lock()

    def rows(self, shard: int, columns: list[str] | None = None) -> pa.Table:
        """The manifest rows of one shard. Safe to call from several threads."""
        part, group = divmod(shard, MANIFEST_SHARDS)
        with self._reading:
            return patient(self.path, lambda: self._manifest(part).read_row_group(group, columns=columns))

    def labels_of(self, table: pa.Table) -> np.ndarray:
        """Labels int32 [n] of the images that a table names by `shard` and `row`."""
        shard, row = table["shard"].to_numpy(), table["row"].to_numpy()
        labels = np.empty(len(table), np.int32)
        for number in np.unique(shard):
            here = shard == number
            labels[here] = self.rows(int(number), ["label"])["label"].to_numpy()[row[here]]
        return labels

    def column(self, split: str, name: str) -> np.ndarray:
        """One numeric manifest column of a whole split, in shard order."""
        parts = [self.rows(shard.shard, [name])[name].to_numpy() for shard in self.shards(split)]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)


class Checkpoint(Artifact):
    """`model.safetensors` (the weights to use: EMA where there is one) and `model.json`, which rebuilds the model."""

    @classmethod
    def named(cls, path: str, otherwise: str = "") -> Checkpoint:
        """The checkpoint that a user named.

        Raises:
            ConfigError: there is none; `otherwise` says what else may be given.
        """
        record = Record.load(Folder(path))
        if record is None or record.kind != cls.__name__:
            raise ConfigError(f"{path} is no finished checkpoint; give its folder (runs/noisy_student/2/student){otherwise}")
        return cls(path)

    @property
    def model(self) -> dict[str, Any]:
        return self.folder.read_json("model.json")


@dataclass(frozen=True)
class LabelFile:
    """Rows [start, stop) of a shard. The name says it, so that a restart can plan from a listing alone."""

    shard: int
    start: int
    stop: int

    PATTERN: ClassVar[re.Pattern[str]] = re.compile(r"^(\d{6,})-(\d{8,})-(\d{8,})\.parquet$")

    @property
    def name(self) -> str:
        return f"{self.shard:06d}-{self.start:08d}-{self.stop:08d}.parquet"

    @classmethod
    def parse(cls, name: str) -> LabelFile | None:
        match = cls.PATTERN.match(name)
        return cls(*(int(part) for part in match.groups())) if match else None


def list_label_files(folder: Folder) -> list[LabelFile]:
    """Label files in shard and row order; other names are passed over."""
    found = (LabelFile.parse(name) for name in folder.names(".parquet"))
    return sorted((file for file in found if file is not None), key=lambda file: (file.shard, file.start))


class PseudoLabels(Artifact):
    """`labels/`: one row an image; `quarantine/`: images that could not be decoded, and why."""

    @property
    def labels(self) -> Folder:
        return self.folder / "labels"

    @cached_property
    def files(self) -> list[LabelFile]:
        return list_label_files(self.labels)

    @property
    def probs_columns(self) -> list[str]:
        """The columns that `tasks.classification.probs_of` needs, and the row."""
        return ["row", "probs"] if self.record.config.get("top_k") is None else ["row", "probs", "top_labels"]

    def read(self, file: LabelFile, columns: list[str] | None = None) -> pa.Table:
        return self.labels.read_table(file.name, columns)

    def table(self, columns: list[str]) -> pa.Table:
        """All rows of some (small) columns, in shard and row order."""
        return pa.concat_tables([self.read(file, columns) for file in self.files])


class Features(Artifact):
    """`features/`: one vector an image, in files that are named like label files; `quarantine/` as with labels."""

    def table(self, shards: list[Shard]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Vectors float32 [n, d] of some shards, with the shard and the row of each, int32 [n]; in that order."""
        held, folder = {shard.shard for shard in shards}, self.folder / "features"
        files = [file for file in list_label_files(folder) if file.shard in held]
        with ThreadPoolExecutor(8) as pool:
            tables = list(pool.map(lambda file: folder.read_table(file.name, ["shard", "row", "features"]), files))
        table = pa.concat_tables(tables).combine_chunks()
        vectors = table["features"].combine_chunks()
        vectors = vectors.chunk(0) if isinstance(vectors, pa.ChunkedArray) else vectors
        width = vectors.type.list_size
        return vectors.flatten().to_numpy().reshape(-1, width), table["shard"].to_numpy(), table["row"].to_numpy()


class Selection(Artifact):
    """Per-class thresholds and expected copies: numbers, not images."""

    @property
    def thresholds(self) -> np.ndarray:
        """float64 [num_classes]: the lowest confidence that is kept; 2.0 where nothing is."""
        return np.asarray(self.results["thresholds"], np.float64)

    @property
    def copies(self) -> np.ndarray:
        """float64 [num_classes]: how often a kept image is shown in an epoch, in expectation."""
        return np.asarray(self.results["copies"], np.float64)

    @property
    def seed(self) -> int:
        return int(self.record.config["seed"])

    @property
    def copied_images(self) -> Folder | None:
        """The kept images in Parquet, one file a shard, if the selection was asked to copy them."""
        return self.folder / "images" if self.record.config.get("materialize") else None


class Scores(Artifact):
    """Metric rows, and one prediction an image in `labels/`, for every split that was evaluated."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        return list(self.results["scores"])

    def predictions(self, shards: list[Shard], columns: list[str]) -> pa.Table:
        """Predictions of some shards, in shard and row order."""
        held = {shard.shard for shard in shards}
        labels = self.folder / "labels"
        files = [file for file in list_label_files(labels) if file.shard in held]
        return pa.concat_tables([labels.read_table(file.name, columns) for file in files])


class Report(Artifact):
    """`report.html`: one file, no network."""
