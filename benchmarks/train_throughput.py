"""Training through Ray Train against loops without it, in one run.

    python -m benchmarks.train_throughput

One worker against a bare PyTorch loop: the same net, augmentation, EMA, precision and threads, batches cut from tensors in
memory, nothing of ours around it. Two gloo workers under Ray Train against the same script under torchrun. Every pair is
timed in turn, several times, because the machine's speed drifts; the ratio is the median over the pairs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from benchmarks.record import DEVICE, by_device, save
from ssl_ray.artifacts import Corpus
from ssl_ray.config import override
from ssl_ray.data.shards import decode_all, read_encoded
from ssl_ray.losses.self_training import cross_entropy
from ssl_ray.machine import usable_cores
from ssl_ray.methods.self_training import SelfTraining
from ssl_ray.precision import has_bfloat16
from ssl_ray.randomness import BatchDraw
from ssl_ray.recipes.noisy_student import demo
from ssl_ray.scale import inline, local
from ssl_ray.settings.training import TrainConfig
from ssl_ray.stage import Run
from ssl_ray.stages.ingest import ingest
from ssl_ray.storage import Folder
from ssl_ray.train.fit import fit
from ssl_ray.views.policy import augment, normalize

WARM = 10
"""Steps that are not counted, in both loops."""


def settings(steps: int) -> TrainConfig:
    """The demo's student on labeled images alone: net, augmentation, noise, EMA and batch as they are."""
    student = demo().student
    return override(
        student, {"mix": "labeled", "batch": sum(student.per_step()), "schedule.length": steps + WARM, "schedule.warmup": 0}
    )


def bare_loop(images: Corpus, config: TrainConfig, threads: int) -> float:
    """Images per second of plain PyTorch."""
    torch.set_num_threads(threads)
    shard = images.shards("train")[0]
    pixels = torch.from_numpy(decode_all(read_encoded(images, shard, np.arange(shard.num_rows)), config.preprocess)[0])
    pixels, labels = pixels.to(DEVICE), torch.from_numpy(images.column("train", "label").astype(np.int64)).to(DEVICE)
    method = SelfTraining(config, len(images.classes))
    model = method.build().to(DEVICE)
    net = model.net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps, begin = int(config.schedule.length), 0.0
    for step in range(steps):
        if step == WARM:
            begin = time.perf_counter()
        index = torch.randint(0, len(pixels), (config.batch,), device=DEVICE)
        batch = pixels[index].permute(0, 3, 1, 2)
        x = normalize(augment(batch, config.view, BatchDraw((0, step), config.batch)), config.preprocess)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=has_bfloat16(DEVICE)):
            loss = cross_entropy(net(x), labels[index], config.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        method.after_step(model, step)
    float(loss.detach())  # a GPU may still be at work
    return config.batch * (steps - WARM) / (time.perf_counter() - begin)


def inside(images: Corpus, config: TrainConfig) -> float:
    """Our loop and loader in this process, without Ray: what Ray itself costs is the rest."""
    with tempfile.TemporaryDirectory() as folder:
        fit("self-training", config, Folder(folder), inline(), images=images)
        return counted(Path(folder) / "history.jsonl")


def cpu_seconds() -> dict[str, float]:
    """CPU seconds so far: of training workers, and of all other processes of Ray."""
    found = {"worker": 0.0, "ray": 0.0}
    for entry in Path("/proc").iterdir():
        try:
            title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
        except (OSError, IndexError):
            continue
        if title.startswith("ray::RayTrainWorker"):
            kind = "worker"
        elif title.startswith("ray") or "/ray/" in title:
            kind = "ray"
        else:
            continue
        found[kind] += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


def cores_while_training(images: Corpus, config: TrainConfig) -> dict[str, float]:
    """Cores that one training worker and Ray's own processes keep busy, from the first logged step to the last."""
    marks: list[tuple[float, dict[str, float]]] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(1.0):
            marks.append((time.perf_counter(), cpu_seconds()))

    threading.Thread(target=watch, daemon=True).start()
    with_ray(images, config, 1)
    done.set()
    rates = [{kind: (b[kind] - a[kind]) / (end - begin) for kind in a} for (begin, a), (end, b) in pairwise(marks)]
    busy = [rate for rate in rates if rate["worker"] > 1.2]  # importing keeps one core busy, training more
    return {kind: round(statistics.median(rate[kind] for rate in busy), 3) for kind in ("worker", "ray")} if busy else {}


def with_ray(images: Corpus, config: TrainConfig, workers: int) -> float:
    """Images per second of the training stage, all workers together."""
    scale = override(local(), {"train_workers": workers, "train_threads": max(1, usable_cores() // workers)})
    with tempfile.TemporaryDirectory() as folder:
        fit("self-training", config, Folder(folder), scale, images=images)
        return counted(Path(folder) / "history.jsonl")


def with_torchrun(images: Corpus, config: TrainConfig, workers: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        payload = Path(folder) / "payload.json"
        payload.write_text(json.dumps({"config": config.model_dump(mode="json"), "images": images.path, "out": folder}))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}",
                   "-m", "benchmarks.torchrun_worker", str(payload)]  # fmt: skip
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": str(max(1, usable_cores() // workers))})
        return counted(Path(folder) / "history.jsonl")


def counted(history: Path) -> float:
    """Images per second over the logged windows but the first, which holds the warm-up."""
    rows = [json.loads(line) for line in history.read_text().splitlines()][1:]
    return statistics.harmonic_mean([row["images_per_s"] for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=160)
    options = parser.parse_args()
    config, threads = settings(options.steps), usable_cores()
    pairs: dict[str, list[tuple[float, float]]] = {
        "one worker / bare loop": [],
        "two workers / torchrun": [],
        "our loop without Ray / bare loop": [],
    }
    if DEVICE.type == "cuda":  # one GPU cannot be parted between two workers that reduce gradients on it
        del pairs["two workers / torchrun"]
    with tempfile.TemporaryDirectory() as root:
        images = Run(root, local())("images", ingest, override(demo().images, {"labels": 2000}))
        for _ in range(options.pairs):
            pairs["one worker / bare loop"].append((with_ray(images, config, 1), bare_loop(images, config, threads)))
            pairs["our loop without Ray / bare loop"].append((inside(images, config), bare_loop(images, config, threads)))
            if "two workers / torchrun" in pairs:
                pairs["two workers / torchrun"].append((with_ray(images, config, 2), with_torchrun(images, config, 2)))
        cores = cores_while_training(images, override(config, {"schedule.length": 4 * options.steps}))
    result = {
        name: {
            "ours": [round(ours) for ours, _ in rows],
            "other": [round(other) for _, other in rows],
            "ratio": round(statistics.median(ours / other for ours, other in rows), 3),
        }
        for name, rows in pairs.items()
    }
    save(by_device("train_throughput"), {"steps": options.steps, "batch": config.batch, "pairs": result, "cores": cores})
    print(f"cores busy while training through Ray: {cores}")
    for name, row in result.items():
        print(f"{name:<26} {row['ratio']:.3f}   images/s: {row['ours']} / {row['other']}")


if __name__ == "__main__":
    main()
