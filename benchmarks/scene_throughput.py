"""Images per second of a detector, labelling and training, against bare loops with the same net, views and precision.

    python -m benchmarks.scene_throughput [--pixels 192] [--images 2500] [--turns 3]

Labelling, bare: a fresh process without Ray that decodes in a pool, one batch ahead of the net, and writes boxes as Parquet.
Training, bare: plain PyTorch with all pixels decoded in memory and the views of the next batch made in a pool during the step;
no shards, no lanes, no checkpoints. Ours and the bare loop take turns, because the machine's speed drifts; ratios are medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.label_throughput import in_a_process, ours, timed
from benchmarks.record import DEVICE, by_device, save
from benchmarks.train_throughput import counted
from ssl_ray.artifacts import Checkpoint, Corpus
from ssl_ray.config import override
from ssl_ray.data.scenes import TargetStore
from ssl_ray.data.shards import decode_all, read_encoded
from ssl_ray.data.sources import ImagesConfig
from ssl_ray.machine import usable_cores
from ssl_ray.methods.method import Batch
from ssl_ray.methods.scenes import SceneTraining
from ssl_ray.models import load_model
from ssl_ray.precision import has_bfloat16
from ssl_ray.recipes.self_training import photos
from ssl_ray.scale import inline, local
from ssl_ray.settings.training import DetectionConfig
from ssl_ray.stage import Run
from ssl_ray.stages.ingest import ingest
from ssl_ray.stages.train import train
from ssl_ray.storage import Folder
from ssl_ray.train.fit import fit
from ssl_ray.views.decode import open_rgb
from ssl_ray.views.scenes import Scene, view

WARM = 5
"""Steps that are not counted."""

BATCH = 64
"""Images that the bare loop labels at once, as ours."""


def settings(pixels: int, steps: int) -> DetectionConfig:
    """The detector for photos, in a smaller size."""
    teacher = photos("detection").teacher
    return DetectionConfig.model_validate(
        override(
            teacher,
            {
                "preprocess.size": pixels,
                "augment.name": "S1",
                "schedule.length": steps + WARM,
                "schedule.warmup": 0,
                "optim.lr": 0.002,  # so few steps leave no time to warm up to more
            },
        ).model_dump()
    )


def label_bare(corpus_path: str, model_path: str, out: Path) -> None:
    """Labels of all images without labels, as anyone would write it."""
    threads = usable_cores()
    torch.set_num_threads(threads)
    model: Any = load_model(model_path).to(DEVICE)
    model.set_precision("auto")
    corpus = Corpus(corpus_path)
    with ThreadPoolExecutor(threads) as pool, ThreadPoolExecutor(1) as ahead:
        for number, shard in enumerate(corpus.shards("unlabeled")):
            encoded = read_encoded(corpus, shard, np.arange(shard.num_rows))
            parts = [encoded[start : start + BATCH] for start in range(0, len(encoded), BATCH)]

            def decoded(part: list[Any]) -> tuple[np.ndarray, np.ndarray]:
                sizes = np.zeros((len(part), 2), np.int32)
                return decode_all(part, model.preprocess, pool, sizes)[0], sizes

            found: list[Any] = []
            coming = ahead.submit(decoded, parts[0])
            for following in [*parts[1:], None]:
                pixels, sizes = coming.result()
                if following is not None:
                    coming = ahead.submit(decoded, following)
                found += model.scenes(pixels, sizes)
            columns = {
                "boxes": [item.boxes.reshape(-1).tolist() for item in found],
                "labels": [item.labels.tolist() for item in found],
                "scores": [item.scores.tolist() for item in found],
            }
            pq.write_table(pa.table(columns), out / f"{number:06d}.parquet", compression="zstd")


def train_bare(images: Corpus, config: DetectionConfig) -> float:
    """Images per second of plain PyTorch."""
    threads = usable_cores()
    torch.set_num_threads(threads)
    scenes: list[Scene] = []
    targets = TargetStore(images.targets, "detection", None, keep=1)
    for shard in images.shards("train"):
        known = targets.rows(shard.shard)
        for row, data in enumerate(read_encoded(images, shard, np.arange(shard.num_rows))):
            pixels = torch.from_numpy(np.array(open_rgb(data))).permute(2, 0, 1)
            labels = torch.from_numpy(known[row].labels.astype(np.int64))
            scenes.append(Scene(pixels, torch.from_numpy(known[row].boxes.copy()), labels))
    method = SceneTraining(config, len(images.classes))
    model = method.build().to(DEVICE)
    model.net.train()
    optimizer = torch.optim.SGD(model.net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    draw = np.random.default_rng(0)
    with ThreadPoolExecutor(threads) as pool, ThreadPoolExecutor(1) as ahead:

        def batch() -> Batch:
            index, seeds = draw.integers(len(scenes), size=config.batch), draw.integers(2**31, size=config.batch)
            views = list(
                pool.map(
                    lambda pair: view(scenes[pair[0]], config.augment, config.preprocess, np.random.default_rng(pair[1])),
                    zip(index, seeds, strict=True),
                )
            )
            found = {
                "boxes": torch.cat([item.boxes for item in views]),  # type: ignore[misc]
                "labels": torch.cat([item.labels for item in views]),  # type: ignore[misc]
                "counts": torch.tensor([len(item.labels) for item in views]),  # type: ignore[arg-type]
            }
            pixels = torch.stack([item.image for item in views]).to(DEVICE)
            return Batch(
                pixels, {name: value.to(DEVICE) for name, value in found.items()}, None, np.arange(config.batch), config.batch
            )

        coming, begin = ahead.submit(batch), 0.0
        steps = int(config.schedule.length)
        for step in range(steps):
            if step == WARM:
                begin = time.perf_counter()
            here = coming.result()
            coming = ahead.submit(batch)
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=has_bfloat16(DEVICE)):
                loss, _ = method.loss(model, here, step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.net.parameters(), config.optim.clip_norm or 10.0)
            optimizer.step()
            method.after_step(model, step)
        float(loss.detach())  # a GPU may still be at work
        return config.batch * (steps - WARM) / (time.perf_counter() - begin)


def train_ours(images: Corpus, config: DetectionConfig, through_ray: bool) -> float:
    scale = override(local() if through_ray else inline(), {"train_threads": usable_cores()})
    with tempfile.TemporaryDirectory() as folder:
        fit("detection", config, Folder(folder), scale, images=images)
        return counted(Path(folder) / "history.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--pixels", type=int, default=192)
    parser.add_argument("--images", type=int, default=5000, help="to label")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    config = settings(options.pixels, options.steps)
    rates: dict[str, list[float]] = {}

    def count(name: str, rate: float) -> None:
        rates.setdefault(name, []).append(round(rate, 1))
        print(f"{name:<24} {rate:8.1f} images/s", flush=True)

    steady: list[float] = []
    with tempfile.TemporaryDirectory() as base:
        work = Path(base)
        run = Run(str(work / "run"), local(), echo=lambda line: None)
        wanted = ImagesConfig(task="detection", labeled="sample:scenes", labels=6000 - options.images)
        images: Corpus = run("images", ingest, wanted)
        model: Checkpoint = run("teacher", train, override(config, {"schedule.length": 60}), images=images)
        from ssl_ray.cluster import ensure_ray

        ensure_ray(local())
        for turn in range(options.turns):
            for name in ("ours", "bare"):
                (work / f"{name}-{turn}").mkdir()
            seconds, result = timed(lambda: ours(images, model, work / f"ours-{turn}", local()))  # noqa: B023
            count("labelling, ours", options.images / seconds)
            mine = options.images / (seconds - result["start_s"])
            seconds, result = timed(lambda: in_a_process(label_bare, images.path, model.path, work / f"bare-{turn}"))  # noqa: B023
            count("labelling, bare loop", options.images / seconds)
            rest = options.images - result["first_rows"]
            if rest:  # more than one file of labels
                steady.append(mine / (rest / (seconds - result["first_s"])))
            count("training, through Ray", train_ours(images, config, True))
            count("training, bare loop", train_bare(images, config))
            count("training, without Ray", train_ours(images, config, False))

    def ratio(one: str, other: str) -> float:
        return round(statistics.median(a / b for a, b in zip(rates[one], rates[other], strict=True)), 3)

    ratios = {
        "labelling / bare loop": ratio("labelling, ours", "labelling, bare loop"),
        **({"labelling / bare loop, steady": round(statistics.median(steady), 3)} if steady else {}),
        "training through Ray / bare loop": ratio("training, through Ray", "training, bare loop"),
        "training without Ray / bare loop": ratio("training, without Ray", "training, bare loop"),
    }
    save(by_device("scene_throughput"), {
        "images": options.images, "pixels": options.pixels, "batch": config.batch, "steps": options.steps,
        "images_per_s": rates, "ratios": ratios,
    })  # fmt: skip
    for name, value in ratios.items():
        print(f"{name:<34} {value:.3f}")


if __name__ == "__main__":
    main()
