"""A sample of every stage, in a folder that goes away: the real stage functions, on fewer images and fewer steps.

What a sample makes (a model of a dozen steps, labels of a thousand images) stands for the whole in the stages after it, so that
a plan walks through the same job as a run does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from ssl_ray.artifacts import Artifact, Checkpoint, Corpus, Features, PseudoLabels, Record, Shard
from ssl_ray.config import Config, fingerprint, override
from ssl_ray.data.loader import labeled_entries
from ssl_ray.data.sources.limit import at_most
from ssl_ray.errors import UserError
from ssl_ray.planning.estimate import Estimate
from ssl_ray.scale import Scale
from ssl_ray.settings.pretraining import PRETRAINING, PretrainConfig
from ssl_ray.settings.training import DetectionConfig, LabeledConfig, LoopConfig, SegmentationConfig, TrainConfig
from ssl_ray.stage import StageFunction
from ssl_ray.storage import Folder
from ssl_ray.train.optim import total_steps

STEPS = 16
"""Steps of a training that are tried; the later half is timed."""
TIMED_S, STEPS_AT_MOST = 6.0, 256
"""Where those are over sooner, as many more as take so many seconds: a slow start, or a moment, must not decide."""
IMAGES = 1024
"""Images that a labelling tries."""
WHOLE = 8192
"""Features of no more images than these are made as they are: probes need the labels that they ask for."""
LISTED = 200_000
"""Files of an unlabeled folder that are listed at most."""
LARGE_STEP = 64 * 64 * 1024
"""Pixels of a step beyond which a smaller batch is tried: images/s depend on the batch far less than seconds do."""

INGEST_S = 2e-5
"""Seconds an image of listing, sharding and writing the manifest, beyond the sample; of one driver."""

# Seconds that a stage takes on a local Ray beyond its work (docs/noisy_student.md, "What a stage costs", two cores).
RAY_S = 10.0
# Most of a start is imports; the starts below are as if these took so long.
IMPORTS, IMPORTS_S = "import torch, torch._dynamo, ray.train", 11.5
START_S = {
    **dict.fromkeys(("train", "pretrain", "probe_layers"), 14.5),
    **dict.fromkeys(("label", "extract", "evaluate"), 7.5),
    "cluster": 6.0,
}

TRAININGS = ("train", "pretrain", "probe_layers")
READERS = ("label", "extract", "evaluate")


def start_factor() -> float:
    """How much longer a process takes to start here and now than where the starts were measured."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, check=False)
    return (time.perf_counter() - begin) / IMPORTS_S


class Sampled(Corpus):
    """The first images of every split."""

    def __init__(self, whole: Corpus, most: int):
        super().__init__(whole.path)
        self._most = most

    @cached_property
    def all_shards(self) -> list[Shard]:
        left: dict[str, int] = {}
        found = []
        for shard in self.stored_shards:
            count = min(shard.num_rows, left.setdefault(shard.split, self._most))
            left[shard.split] -= count
            found.append(dataclasses.replace(shard, num_rows=count))
        return found

    def shards(self, split: str) -> list[Shard]:
        return [shard for shard in self.all_shards if shard.split == split and shard.num_rows]

    def rows(self, shard: int, columns: list[str] | None = None) -> pa.Table:
        return super().rows(shard, columns).slice(0, self.all_shards[shard].num_rows)


@dataclass
class Planner:
    """Tries the stages of one job; `estimates` in their order."""

    scale: Scale
    heap: int | None = None  # unlabeled images, where the user says how many there will be
    estimates: list[Estimate] = field(default_factory=list)
    cut: dict[str, float] = field(default_factory=dict)
    _number: int = 0

    def __enter__(self) -> Planner:
        self._place = tempfile.TemporaryDirectory(prefix="ssl_ray-plan-")
        return self

    def __exit__(self, *error: Any) -> None:
        self._place.cleanup()

    def __call__(self, planned: Artifact, function: StageFunction, config: Config, inputs: dict[str, Any]) -> Artifact:
        """Try a stage; what it made stands for it. Where a sample cannot be tried, the plan says so and goes on.

        Raises:
            UserError: what the whole job would raise too: bad images, settings that do not fit.
        """
        name, does = planned.record.name, function.__name__
        if does == "snapshot":  # a few steps keep none; any state of the encoder costs the same
            self.estimates.append(Estimate(name, does, fixed_s=0.5))
            return _standing(inputs["model"], planned)
        self._number += 1
        out = Folder(os.path.join(self._place.name, f"{self._number:03d}"))
        estimate = Estimate(name, does)
        self.estimates.append(estimate)
        tried, given = _smaller(config, inputs, does), dict(inputs)
        if does in READERS:
            images: Corpus = given["images"]
            splits = _splits(does, config)
            small = "unlabeled" not in splits and sum(images.num_images(split) for split in splits) <= WHOLE
            given["images"] = Sampled(images, WHOLE if does == "extract" and small else IMAGES)
        begin = time.perf_counter()
        try:
            with _quiet(), at_most(LISTED if self.heap is not None else 50 * LISTED) as cut:
                results = function(tried, out, self._small_scale(), **given)
                if does in TRAININGS and (more := round(STEPS * TIMED_S / results["work_s"])) > STEPS:
                    tried = override(tried, {"schedule.length": min(more, STEPS_AT_MOST)})
                    out = Folder(f"{out.path}-longer")
                    results = function(tried, out, self._small_scale(), **given)
        except UserError:
            if does in (*TRAININGS, "ingest", "label"):
                raise
            estimate.note = "could not be tried on a sample"
            return planned
        except Exception as error:  # a sample is not the whole: what stops it need not stop a run
            estimate.note = f"could not be tried on a sample ({type(error).__name__})"
            return planned
        self.cut |= cut
        estimate.tried_s = time.perf_counter() - begin
        found = _recorded(planned, out, results, estimate.tried_s)
        try:
            self._judge(estimate, config, tried, found, inputs)
        except UserError:
            raise
        except Exception as error:
            estimate.note = f"was tried, and its sample says nothing of the whole ({type(error).__name__})"
        return found

    def _small_scale(self) -> Scale:
        """The job's own process."""
        changes: dict[str, Any] = {
            "train_workers": 0,
            "label_actors_max": 0,
            "cluster_actors": 0,
            "decode": "fused",
        }
        gpus = float(self._on_gpu)
        changes |= {"train_gpus": gpus, "label_gpus": gpus, "train_threads": 0, "label_threads": 0}
        return override(self.scale, changes)

    @cached_property
    def _on_gpu(self) -> bool:
        import torch

        return torch.cuda.is_available() and self.scale.train_gpus > 0

    def count(self, images: Corpus, split: str) -> int:
        """Images of a split, in the whole."""
        count = images.num_images(split)
        if split != "unlabeled":
            return count
        if self.heap is not None:
            return self.heap
        factors = [factor for source, factor in self.cut.items() if source == images.record.config.get("unlabeled")]
        if factors and factors[0] == float("inf"):
            raise UserError(
                f"{images.record.config['unlabeled']} has more than {50 * LISTED:,} images, and a plan does not list them all; "
                "say how many there are with --heap N"
            )
        return round(count * factors[0]) if factors else count

    def _judge(self, estimate: Estimate, config: Config, tried: Config, found: Artifact, inputs: dict[str, Any]) -> None:
        """From the sample to the whole."""
        results, images = found.results, inputs.get("images")
        if estimate.does in TRAININGS:
            assert isinstance(config, LoopConfig)
            assert isinstance(tried, LoopConfig)
            assert isinstance(found, Checkpoint)
            history = found.history
            late = history[len(history) // 2 :]
            rate = statistics.median(entry["images_per_s"] for entry in late)
            wait = statistics.median(entry["data_wait"] for entry in late)
            estimate.batch = config.images_per_step()
            estimate.model_s, estimate.wait_s = (1 - wait) / rate, wait / rate
            estimate.alike = _step_of(config, images)
            steps, distinct = self._steps(config, inputs)
            estimate.images = steps * config.images_per_step()
            encoded = _kept_encoded(config)
            bytes_held = distinct * (_bytes_of(images) if encoded else 3 * config.preprocess.size**2)
            fits = bytes_held <= self.scale.cache_mb * 2**20
            estimate.loads = min(estimate.images, distinct) if fits else estimate.images
            estimate.fresh = estimate.images if encoded else estimate.loads
            estimate.load_s = results["load_s"] / max(1, results["loaded"])
            if not fits and self._on_gpu:  # a GPU trains while the CPUs load; on CPUs either takes from the other
                estimate.load_s = max(0.0, estimate.load_s - estimate.model_s)
            # At the start the model has to wait for what is loaded, and is slow itself.
            trained = tried.images_per_step() * total_steps(tried.schedule, 1.0)
            slow = results["work_s"] - trained / rate - results["load_s"]
            estimate.fixed_s = results["setup_s"] + max(0.0, slow)
            estimate.read = estimate.loads * _bytes_of(images)
            weights = len(found.folder.read_bytes("model.safetensors"))
            estimate.written = weights * (1 + 3 * max(1, steps // self.scale.checkpoint_steps))
        elif estimate.does in READERS:
            assert isinstance(images, Corpus)
            spent, rows = results["spent"], results["labeled_now"]
            count = sum(self.count(images, split) for split in _splits(estimate.does, config))
            estimate.images = estimate.loads = estimate.fresh = count
            estimate.batch = self.scale.label_batch or 256
            estimate.decode_s = (spent["read_s"] + spent["decode_s"]) / rows
            estimate.model_s = spent["predict_s"] / rows
            estimate.load_s = max(0.0, results["work_s"] / rows - estimate.model_s)
            estimate.fixed_s = results["start_s"]
            estimate.read = estimate.images * _bytes_of(images)
            estimate.written = round(_size(found.folder) / rows * estimate.images)
        elif estimate.does == "select" and isinstance(labels := inputs.get("labels"), PseudoLabels):
            whole = max([past.images for past in self.estimates if past.stage == labels.record.name], default=0)
            estimate.fixed_s = estimate.tried_s + whole / 2e6
        elif estimate.does == "cluster":
            estimate.fixed_s = self._clustering(estimate, config, tried, inputs["features"])
        elif estimate.does == "ingest":
            listed = results["images"]["unlabeled"]
            whole = self.count(found, "unlabeled") if isinstance(found, Corpus) else listed
            # Most of a small sample's time is its start; beyond, an image costs a line of a listing and of the manifest.
            estimate.fixed_s = estimate.tried_s + INGEST_S * max(0, whole - listed)
            estimate.written = round(_size(found.folder) * max(1.0, whole / max(1, listed)))
        else:
            estimate.fixed_s = estimate.tried_s
            estimate.written = _size(found.folder)

    def _steps(self, config: LoopConfig, inputs: dict[str, Any]) -> tuple[int, int]:
        """Steps of the whole training, and how many different images it sees."""
        images: Corpus = inputs["images"]
        everything = sum(self.count(images, split) for split in PRETRAINING)
        labels = inputs.get("labels")
        if isinstance(config, PretrainConfig):
            epoch = distinct = max(1, round(config.share * everything))
        else:
            subset = config.subset if isinstance(config, LabeledConfig | DetectionConfig | SegmentationConfig) else None
            epoch = distinct = len(labeled_entries(images, subset)) if images.num_images("train") else everything
            if isinstance(config, TrainConfig | DetectionConfig | SegmentationConfig) and config.mix != "labeled":
                split = labels.record.config["split"] if labels is not None else "unlabeled"
                distinct += self.count(images, split)
        return total_steps(config.schedule, epoch / config.batch), distinct

    def _clustering(self, estimate: Estimate, config: Any, tried: Any, features: Features) -> float:
        """k-means grows with points, clusters and iterations; a sample may hold fewer clusters than are wanted."""
        whole = next((past.images for past in self.estimates if past.stage == features.record.name), 0)
        rows = max(1, int(features.results["images"]))
        factor = (max(whole, rows) / rows) * (config.k / tried.k) * (config.iterations / tried.iterations)
        return estimate.tried_s * factor


def _splits(does: str, config: Any) -> tuple[str, ...]:
    return (config.split,) if does == "label" else tuple(config.splits)


def _smaller(config: Config, inputs: dict[str, Any], does: str) -> Config:
    """Settings of a sample."""
    changes: dict[str, Any] = {}
    if isinstance(config, LoopConfig):
        changes |= {"schedule.unit": "steps", "schedule.length": STEPS, "schedule.warmup": 0}
        if isinstance(config, PretrainConfig):
            changes["snapshots"] = ()
        changes["lanes"] = 1  # every lane opens shards of its own
        step = config.images_per_step() * config.preprocess.size**2
        if step > LARGE_STEP and config.batch_norm == "sync" and not hasattr(config, "queue"):
            changes["batch"] = max(1, round(config.batch * LARGE_STEP / step))
    elif does == "select":
        changes |= {"allow_empty_classes": True, "min_confidence": 0.0}
    elif does == "cluster":
        rows = int(inputs["features"].results["images"])
        k = min(config.k, max(2, rows // 4))  # type: ignore[attr-defined]
        changes |= {"k": k, "iterations": min(config.iterations, 3)}  # type: ignore[attr-defined]
    return override(config, changes) if changes else config


def _step_of(config: LoopConfig, images: Any) -> str:
    """What a training does in a step, as a fingerprint: settings but for draws and length, and whose pixels are decoded."""
    kept = config.model_dump(mode="json", exclude={"seed", "subset", "schedule"})
    return fingerprint({"images": images.record.fingerprint, **kept})


def _kept_encoded(config: LoopConfig) -> bool:
    """Whether images are decoded anew every time that they are seen."""
    return config.decoded_crops() is not None or isinstance(config, DetectionConfig | SegmentationConfig)


def _standing(found: Artifact, planned: Artifact) -> Artifact:
    """An artifact under another one's name and fingerprint."""
    standing = type(found).__new__(type(found))
    standing.__dict__.update(found.__dict__)
    record = dataclasses.replace(found.record, name=planned.record.name, fingerprint=planned.record.fingerprint)
    standing.record = record
    return standing


def _recorded(planned: Artifact, out: Folder, results: dict[str, Any], seconds: float) -> Artifact:
    old = planned.record
    record = Record(old.kind, old.stage, old.name, old.fingerprint, old.config, old.inputs, results, wall_s=round(seconds, 3))
    Record.save(dataclasses.replace(record, computed="sample"), out)
    return type(planned)(out.path)


def _bytes_of(images: Any) -> int:
    """Mean size of an encoded image."""
    if not isinstance(images, Corpus):
        return 0
    shard = max(images.all_shards, key=lambda shard: shard.num_rows)
    table = images.rows(shard.shard, ["length", "size", "path"])
    lengths = table["length"].to_numpy(zero_copy_only=False)
    if len(lengths) and lengths.min() > 0:
        return int(np.mean(lengths))
    files = dict(zip(table["path"].to_pylist(), table["size"].to_pylist(), strict=True))
    return round(sum(files.values()) / max(1, len(table)))


def _size(folder: Folder) -> int:
    return sum(info.size or 0 for info in folder._list(recursive=True) if info.size)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Progress of samples is nobody's concern."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


__all__ = ["RAY_S", "START_S", "Checkpoint", "Estimate", "Planner"]
