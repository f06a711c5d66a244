"""What stages hand to each other: folders with Parquet or safetensors and a `_record.json`, written last.

The presence of the record means that the artifact is whole. Everything in it opens with any Parquet reader.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ssl_ray.damage import MODEL_KEYS, RECORD, misfit, model_problem, newer, parsed
from ssl_ray.errors import ConfigError, DamagedError
from ssl_ray.filesystems import patient
from ssl_ray.label_files import LabelFile, list_label_files
from ssl_ray.schema import BOX_LABELS, MANIFEST, MANIFEST_SHARDS, MASK_LABELS, SHARDS, classification_labels
from ssl_ray.storage import Folder


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
        folder.write_sealed(RECORD, asdict(self))

    @staticmethod
    def load(folder: Folder) -> Record | None:
        """Read the record of a folder; None where there is none.

        Raises:
            DamagedError: it cannot be read, was changed, or was written by a newer version.
        """
        known = [field.name for field in fields(Record)]
        return Record(**folder.read_sealed(RECORD, known)) if folder.exists(RECORD) else None


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
        if record.kind not in (kinds := [kind.__name__ for kind in type(self).__mro__]):
            raise self.folder.damaged(RECORD, f"it is the record of a {record.kind}, and a {kinds[0]} is needed")
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
        return self.stored_shards

    @cached_property
    def stored_shards(self) -> list[Shard]:
        """All shards, as they are listed beside the manifest."""
        rows = self.folder.read_table("shards.parquet", schema=SHARDS).to_pylist()
        counts = dict.fromkeys(self.results.get("images", {}), 0)
        for row in rows:
            counts[row["split"]] = counts.get(row["split"], 0) + row["num_rows"]
        if [row["shard"] for row in rows] != list(range(len(rows))) or counts != self.results.get("images", counts):
            raise self.folder.damaged("shards.parquet", f"it lists other images than the record ({counts})")
        return [Shard(**row) for row in rows]

    def shards(self, split: str) -> list[Shard]:
        return [shard for shard in self.all_shards if shard.split == split]

    def num_images(self, split: str) -> int:
        return sum(shard.num_rows for shard in self.shards(split))

    def _manifest(self, part: int, name: str) -> pq.ParquetFile:
        if part not in self._opened:
            if len(self._opened) >= 8:  # readers go through shards in order; an old part does not come back soon
                self._opened.pop(next(iter(self._opened))).close()
            file = self.folder.open_parquet(name)
            shards = self.stored_shards[part * MANIFEST_SHARDS : (part + 1) * MANIFEST_SHARDS]
            groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
            problem = misfit(file.schema_arrow, None, MANIFEST)
            if problem or groups != [shard.num_rows for shard in shards]:
                raise self.folder.damaged(name, problem or "its row groups are not the shards that are listed")
            self._opened[part] = file
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
        name = f"manifest/{part:06d}.parquet"

        def read() -> pa.Table:
            with self.folder.naming_damage(name):
                return self._manifest(part, name).read_row_group(group, columns=columns)

        with self._reading:
            return patient(self.path, read)

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
        """The description of the net, checked.

        Raises:
            DamagedError: `model.json` cannot be read, or does not describe a model.
        """
        found = self.folder.read_json("model.json")
        if isinstance(found, dict) and (unknown := sorted(found.keys() - MODEL_KEYS)):
            raise newer(self.folder.file("model.json"), ", ".join(map(repr, unknown[:5])))
        if problem := model_problem(found):
            raise self.folder.damaged("model.json", problem)
        description: dict[str, Any] = found
        return description

    @property
    def history(self) -> list[dict[str, Any]]:
        """What the training logged, one entry per logged step.

        Raises:
            DamagedError: `history.jsonl` cannot be read.
        """
        try:
            entries = [parsed(line) for line in self.folder.read_own("history.jsonl").splitlines()]
        except DamagedError:
            raise
        except ValueError as error:
            raise self.folder.damaged("history.jsonl", str(error)) from None
        if not all(isinstance(entry, dict) and {"step", "loss"} <= entry.keys() for entry in entries):
            raise self.folder.damaged("history.jsonl", "an entry has no step or no loss")
        last = self.results.get("last", {})
        if last and (not entries or entries[-1]["step"] != last["step"]):
            raise self.folder.damaged("history.jsonl", f"it does not end at step {last['step']:.0f}")
        return entries


class RowFiles(Artifact):
    """Rows of images in files that are named after their ranges, in the folder `output`; `quarantine/`: images that could not
    be used, and why."""

    output: ClassVar[str] = "labels"

    @property
    def labels(self) -> Folder:
        return self.folder / self.output

    @cached_property
    def files(self) -> list[LabelFile]:
        """All files, in shard and row order.

        Raises:
            DamagedError: there are more or fewer than were written.
        """
        files = list_label_files(self.labels)
        if len(files) != self.results.get("files", len(files)):
            raise self.folder.damaged(self.output, f"it holds {len(files)} files of rows, not {self.results['files']}")
        return files

    @property
    def schema(self) -> pa.Schema | None:
        """Columns of the files, where they are known."""
        return None

    def read(self, file: LabelFile, columns: list[str] | None = None) -> pa.Table:
        """Read some columns of a file.

        Raises:
            DamagedError: it cannot be read, or holds something else than was written.
        """
        table, quarantine = file.read(self.labels, columns, self.schema), self.folder / "quarantine"
        missing = file.stop - file.start - len(table)
        if missing and missing != (quarantine.num_rows(file.name) if quarantine.exists(file.name) else 0):
            raise self.labels.damaged(file.name, f"{missing} of its rows are missing")
        return table

    def of_shards(self, shards: list[Shard], columns: list[str]) -> pa.Table:
        """Rows of some shards, in shard and row order."""
        held = {shard.shard for shard in shards}
        files = [file for file in self.files if file.shard in held]
        with ThreadPoolExecutor(8) as pool:
            return pa.concat_tables(list(pool.map(lambda file: self.read(file, columns), files)))


class PseudoLabels(RowFiles):
    """`labels/`: one row an image; `quarantine/`: images that could not be decoded, and why."""

    @property
    def probs_columns(self) -> list[str]:
        """The columns that `tasks.classification.probs_of` needs, and the row."""
        return ["row", "probs"] if self.record.config.get("top_k") is None else ["row", "probs", "top_labels"]

    @property
    def schema(self) -> pa.Schema:
        task = self.results.get("task", "classification")
        if task == "classification":
            return classification_labels(len(self.results["classes"]), self.record.config.get("top_k"))
        return BOX_LABELS if task == "detection" else MASK_LABELS

    def table(self, columns: list[str]) -> pa.Table:
        """All rows of some (small) columns, in shard and row order."""
        return pa.concat_tables([self.read(file, columns) for file in self.files])


class Features(RowFiles):
    """`features/`: one vector an image, in files that are named like label files; `quarantine/` as with labels."""

    output = "features"

    def table(self, shards: list[Shard]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Vectors float32 [n, d] of some shards, with the shard and the row of each, int32 [n]; in that order."""
        table = self.of_shards(shards, ["shard", "row", "features"]).combine_chunks()
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


class Scores(RowFiles):
    """Metric rows, and one prediction an image in `labels/`, for every split that was evaluated."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        return list(self.results["scores"])


class Report(Artifact):
    """`report.html`: one file, no network."""
