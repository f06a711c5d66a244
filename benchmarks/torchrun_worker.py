"""The library's training loop under torchrun instead of Ray Train; started by `benchmarks.train_throughput`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from ssl_ray.artifacts import Corpus
from ssl_ray.data.loader import host_batches
from ssl_ray.methods.self_training import SelfTraining
from ssl_ray.scale import local
from ssl_ray.settings.training import TrainConfig
from ssl_ray.train.loop import Loop
from ssl_ray.train.streams import make_streams


def main() -> None:
    payload = json.loads(Path(sys.argv[1]).read_text())
    dist.init_process_group("gloo")
    rank, workers = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    config, images = TrainConfig.model_validate(payload["config"]), Corpus(payload["images"])
    method = SelfTraining(config, len(images.classes))
    steps = int(config.schedule.length)
    loop = Loop(method, None, steps=steps, steps_per_epoch=1.0, device=torch.device("cpu"), workers=workers)
    streams = make_streams(config, images, None, None, rank=rank, workers=workers, scale=local())
    batches = host_batches(streams, 0, steps)
    loop.run(batches, log_steps=max(1, steps // 8), log=lambda entry: None, save_steps=steps + 1, save=lambda: None)
    if rank == 0:
        lines = [json.dumps(entry) + "\n" for entry in loop.state.history]
        (Path(payload["out"]) / "history.jsonl").write_text("".join(lines))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
