"""A queue of past keys, as MoCo and SimCLRv2 keep it: first in, first out, whole in the checkpoint."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from ssl_ray.losses.contrastive import several_workers


class Queue(nn.Module):
    """The last `size` keys. Tensors and pointer are buffers, so that a checkpoint holds them."""

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.register_buffer("keys", torch.zeros(size, dim))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    keys: torch.Tensor
    pointer: torch.Tensor
    filled: torch.Tensor

    def held(self) -> torch.Tensor:
        """The keys so far, float [min(pushed, size), dim]."""
        return self.keys[: int(self.filled)]

    @torch.no_grad()
    def push(self, keys: torch.Tensor) -> None:
        """Take the keys of all workers, in order of rank; they replace the oldest. [n, dim] a worker.

        Raises:
            ValueError: the keys of a step do not divide the queue.
        """
        keys = keys.to(self.keys.dtype)
        if several_workers():
            parts = [torch.empty_like(keys) for _ in range(dist.get_world_size())]
            dist.all_gather(parts, keys.contiguous())
            keys = torch.cat(parts)
        size, begin = len(self.keys), int(self.pointer)
        if size % len(keys):
            raise ValueError(f"{len(keys)} keys a step do not divide a queue of {size}")
        self.keys[begin : begin + len(keys)] = keys
        self.pointer.fill_((begin + len(keys)) % size)
        self.filled.fill_(min(size, int(self.filled) + len(keys)))
