"""A queue of past keys, as MoCo and SimCLRv2 keep it: first in, first out, whole in the checkpoint."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ssl_ray.distributed import gather
from ssl_ray.machine import check_memory


class Queue(nn.Module):
    """The last `size` keys. Tensors and pointer are buffers, so that a checkpoint holds them.

    Args:
        seed: fill it with random unit vectors to begin with, as MoCo does; None: it begins empty.
    """

    def __init__(self, size: int, dim: int, seed: int | None = None):
        super().__init__()
        self.full = seed is not None  # from the beginning: no need to ask the device
        check_memory(f"a queue of {size:,} keys", 4 * size * dim, "lower the size of the queue")
        keys = torch.zeros(size, dim)
        if seed is not None:
            keys = F.normalize(torch.randn(size, dim, generator=torch.Generator().manual_seed(seed % 2**63)), dim=1)
        self.register_buffer("keys", keys)
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.register_buffer("filled", torch.full((), 0 if seed is None else size, dtype=torch.int64))

    keys: torch.Tensor
    pointer: torch.Tensor
    filled: torch.Tensor

    def held(self) -> torch.Tensor:
        """The keys so far, float [min(pushed, size), dim]."""
        return self.keys if self.full else self.keys[: int(self.filled)]

    @torch.no_grad()
    def push(self, keys: torch.Tensor, lanes: int) -> None:
        """Replace the oldest keys by those of all workers, in order of rank; [n, dim] on each worker."""
        self.put(gather(keys, lanes))

    @torch.no_grad()
    def put(self, keys: torch.Tensor) -> None:
        """The same for keys that all workers hold already, [N, dim].

        Raises:
            ValueError: they do not divide the queue.
        """
        keys = keys.to(self.keys.dtype)
        size, begin = len(self.keys), int(self.pointer)
        if size % len(keys):
            raise ValueError(f"{len(keys)} keys a step do not divide a queue of {size}")
        self.keys[begin : begin + len(keys)] = keys
        self.pointer.fill_((begin + len(keys)) % size)
        self.filled.fill_(min(size, int(self.filled) + len(keys)))
