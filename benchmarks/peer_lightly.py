"""The same pretraining by lightly-train, in an environment of its own: only its speed is read."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ssl_ray.artifacts import Corpus
from ssl_ray.data.shards import read_encoded

PROGRAM = """
import json, sys, time
import lightly_train
images, method, pixels, batch, epochs, out = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]), sys.argv[6]
run = getattr(lightly_train, "pretrain", None) or lightly_train.train
begin = time.perf_counter()
run(out=out, data=images, model="torchvision/resnet18", method=method, epochs=epochs, batch_size=batch, num_workers=2,
    accelerator="cpu", devices=1, transform_args={"image_size": (pixels, pixels)}, overwrite=True)
print("SECONDS", json.dumps(time.perf_counter() - begin))
"""

SHORT, LONG = 1, 3
"""Epochs of two runs; the difference of their times is training alone."""

QUIET = {"LIGHTLY_TRAIN_EVENTS_DISABLED": "1"}
"""No telemetry, of the peer either."""


def peer(python: str, images: Corpus, method: str, pixels: int, batch: int, steps: int = 12) -> dict[str, Any]:
    """Images per second of lightly-train on a ResNet-18, two loading workers, its own defaults for everything else."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "images"
        data.mkdir()
        shard, count = images.shards("unlabeled")[0], steps * batch
        encoded = read_encoded(images, shard, np.arange(min(count, shard.num_rows)))
        for number in range(count):
            (data / f"{number}.png").write_bytes(encoded[number % len(encoded)])
        seconds = {}
        for epochs in (SHORT, LONG):
            command = [
                python,
                "-c",
                PROGRAM,
                str(data),
                method,
                str(pixels),
                str(batch),
                str(epochs),
                str(Path(folder) / "out"),
            ]
            answer = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | QUIET)
            found = [line for line in answer.stdout.splitlines() if line.startswith("SECONDS ")]
            if answer.returncode or not found:
                raise RuntimeError(f"lightly-train failed: {answer.stderr[-2000:]}")
            seconds[epochs] = float(json.loads(found[0].removeprefix("SECONDS ")))
        rate = (LONG - SHORT) * count / (seconds[LONG] - seconds[SHORT])
        return {"images_per_s": round(rate, 1), "seconds": {str(key): round(value, 1) for key, value in seconds.items()}}
