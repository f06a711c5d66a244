"""Images per second of pretraining, against a bare loop with the same net and views, and against a peer.

    python -m benchmarks.pretrain_throughput [--method simclr|moco] [--pixels 64] [--peer PYTHON]

The bare loop: plain PyTorch, images decoded in memory, no lanes, no checkpoints, no Ray. `--peer` names the Python of an
environment with lightly-train in it (AGPL, so never a dependency of ours); it trains the same kind of net at the same size.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.peer_lightly import peer
from benchmarks.record import DEVICE, by_device, save
from benchmarks.train_throughput import counted
from ssl_ray.artifacts import Corpus
from ssl_ray.config import override
from ssl_ray.data.shards import decode_all, read_encoded
from ssl_ray.data.sources import ImagesConfig
from ssl_ray.losses.contrastive import info_nce, nt_xent
from ssl_ray.machine import usable_cores
from ssl_ray.methods.method import Batch
from ssl_ray.methods.moco import MoCo
from ssl_ray.methods.simclr import SimCLR
from ssl_ray.precision import has_bfloat16
from ssl_ray.scale import inline, local
from ssl_ray.settings.nets import NetConfig
from ssl_ray.settings.pretraining import ContrastiveConfig, MoCoConfig, SimCLRConfig
from ssl_ray.settings.training import OptimConfig, ScheduleConfig
from ssl_ray.settings.views import Preprocess, SimCLRViewConfig
from ssl_ray.stage import Run
from ssl_ray.stages.ingest import ingest
from ssl_ray.storage import Folder
from ssl_ray.train.fit import fit

WARM = 3
"""Steps that are not counted."""


def settings(method: str, net: str, pixels: int, steps: int, batch: int) -> ContrastiveConfig:
    """A whole net with all of SimCLR's views, by either method."""
    common = {
        "net": NetConfig(name=net, small_image=pixels <= 32),
        "preprocess": Preprocess(size=pixels),
        "view": SimCLRViewConfig(),
        "batch": batch,
        "lanes": 4,
        "optim": OptimConfig(lr=0.05),
        "schedule": ScheduleConfig(length=steps + WARM),
    }
    if method == "moco":
        return override(MoCoConfig(), {**common, "queue": 32 * batch, "batch_norm": batch // 4})
    return override(SimCLRConfig(), common)


def bare_loop(images: Corpus, config: ContrastiveConfig) -> tuple[float, float]:
    """Images per second of plain PyTorch, and the share of its time that views take."""
    torch.set_num_threads(usable_cores())
    shard = images.shards("unlabeled")[0]
    pixels = torch.from_numpy(decode_all(read_encoded(images, shard, np.arange(shard.num_rows)), config.preprocess)[0])
    pixels = pixels.to(DEVICE)
    method = MoCo(config) if isinstance(config, MoCoConfig) else SimCLR(SimCLRConfig.model_validate(config))
    model = method.build().to(DEVICE)
    net = model.net.train()
    step_loss = moco_loss(config, model) if isinstance(config, MoCoConfig) else simclr_loss(config, net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps, begin, views = int(config.schedule.length), 0.0, 0.0
    for step in range(steps):
        if step == WARM:
            begin, views = time.perf_counter(), 0.0
        index = torch.randint(0, len(pixels), (config.batch,), device=DEVICE)
        batch = Batch(pixels[index].permute(0, 3, 1, 2), None, None, np.arange(config.batch), config.batch)
        started = time.perf_counter()
        first, second = method.views(batch, step)
        if DEVICE.type == "cpu":  # elsewhere a call returns before its work is done
            views += time.perf_counter() - started
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=has_bfloat16(DEVICE)):
            loss = step_loss(first, second)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    float(loss.detach())
    took = time.perf_counter() - begin
    return config.batch * (steps - WARM) / took, views / took


Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def simclr_loss(config: ContrastiveConfig, net: torch.nn.Module) -> Loss:
    def loss(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        a, b = net(torch.cat([first, second]))[1].chunk(2)
        return nt_xent(a, b, config.temperature)[0]

    return loss


def moco_loss(config: MoCoConfig, model: Any) -> Loss:
    """As in the authors' script: no lanes, no addresses, one device."""
    queue, keys, place = model.queue.keys.clone(), model.keys.train(), 0

    def loss(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        nonlocal place
        query = model.net(first)[1]
        with torch.no_grad():
            for average, current in zip(keys.parameters(), model.net.parameters(), strict=True):
                average.mul_(config.ema).add_(current, alpha=1 - config.ema)
            order = torch.randperm(len(second), device=second.device)
            key = F.normalize(keys(second[order])[1].float(), dim=1)[order.argsort()]
        value, _ = info_nce(query, key, queue.clone(), config.temperature)
        queue[place : place + len(key)] = key
        place = (place + len(key)) % len(queue)
        return value

    return loss


def ours(images: Corpus, config: ContrastiveConfig, through_ray: bool) -> float:
    scale = override(local(), {"train_threads": usable_cores()}) if through_ray else inline()
    with tempfile.TemporaryDirectory() as folder:
        fit(config.method, config, Folder(folder), scale, images=images)
        return counted(Path(folder) / "history.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--method", choices=("simclr", "moco"), default="simclr")
    parser.add_argument("--net", default="resnet:18")
    parser.add_argument("--pixels", type=int, default=64)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--peer", help="Python of an environment with lightly-train")
    options = parser.parse_args()
    config = settings(options.method, options.net, options.pixels, options.steps, options.batch)
    rows: dict[str, list[float]] = {"through Ray": [], "without Ray": [], "bare loop": []}
    shares = []
    with tempfile.TemporaryDirectory() as root:
        images = Run(root, local())("images", ingest, ImagesConfig(labels=1000, test_images=500))
        for _ in range(options.pairs):
            rows["through Ray"].append(ours(images, config, True))
            rows["without Ray"].append(ours(images, config, False))
            rate, share = bare_loop(images, config)
            rows["bare loop"].append(rate)
            shares.append(share)
        result: dict[str, Any] = {
            "method": options.method,
            "net": options.net,
            "pixels": options.pixels,
            "batch": options.batch,
            "steps": options.steps,
        }
        if options.peer:
            result["peer"] = peer(options.peer, images, options.method, options.pixels, options.batch)
    ratios = {
        f"{name} / bare loop": round(statistics.median(a / b for a, b in zip(rows[name], rows["bare loop"], strict=True)), 3)
        for name in ("through Ray", "without Ray")
    }
    if options.peer:
        ratios["through Ray / lightly-train"] = round(
            statistics.median(rows["through Ray"]) / result["peer"]["images_per_s"], 2
        )
    result |= {
        "images_per_s": {name: [round(value, 1) for value in values] for name, values in rows.items()},
        "ratios": ratios,
        "views_share": round(statistics.median(shares), 3),
    }
    save(by_device(f"pretrain_throughput-{options.method}"), result)
    for name, value in ratios.items():
        print(f"{name:<30} {value}")
    print(f"views take {result['views_share']:.1%} of the bare loop (of a CPU); images/s {result['images_per_s']}")


if __name__ == "__main__":
    main()
