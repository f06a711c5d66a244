"""Two gloo workers without Ray: what they compute must equal one worker's."""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _run(rank: int, world: int, port: int, function: Callable[..., Any], arguments: tuple[Any, ...], out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    try:
        torch.save(function(rank, world, *arguments), f"{out}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def on_workers(world: int, function: Callable[..., Any], arguments: tuple[Any, ...], folder: Path) -> list[Any]:
    """`function(rank, world, *arguments)` on every worker; the results by rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # One server imports once for all tests of a process, and workers are forked from it.
    multiprocessing.set_forkserver_preload(["torch._dynamo", "torchvision.transforms.v2", "timm", "tests.workers"])
    mp.start_processes(_run, (world, port, function, arguments, str(folder)), nprocs=world, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]
