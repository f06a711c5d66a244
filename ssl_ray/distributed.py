"""Sums and gathers over the workers of one training. In a process without a process group they do nothing."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from ssl_ray.randomness import held_lanes


def num_workers() -> int:
    """Return the number of workers of this training."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this worker, from 0."""
    return dist.get_rank() if num_workers() > 1 else 0


def share(lanes: int) -> float:
    """Return this worker's share of the global batch."""
    return len(held_lanes(lanes, rank(), num_workers())) / lanes


def loss_weight(lanes: int) -> float:
    """Return the factor of this worker's mean loss: the mean over workers then is the mean over the global batch."""
    return len(held_lanes(lanes, rank(), num_workers())) * num_workers() / lanes


class _Sum(torch.autograd.Function):
    """x -> its sum over all workers. The gradient of a sum of all workers' losses is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def sum_over_workers(x: torch.Tensor) -> torch.Tensor:
    """Return the sum of a tensor over all workers, with gradient."""
    return _Sum.apply(x) if num_workers() > 1 else x


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        ctx.begin, ctx.size = sum(sizes[: rank()]), len(x)
        # Contiguous: images in channels-last memory would come out scrambled on some backends.
        padded = torch.cat([x, x.new_zeros((max(sizes) - len(x), *x.shape[1:]))]).contiguous()
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.begin : ctx.begin + ctx.size], None


def gather(x: torch.Tensor, lanes: int) -> torch.Tensor:
    """Return the rows of all workers in order of rank, [n, ...] -> [N, ...], with gradient.

    Args:
        x: this worker's rows, equally many of each lane that it holds.
        lanes: number of lanes that the global batch is cut into.
    """
    return _Gather.apply(x, sizes_of(len(x), lanes)) if num_workers() > 1 else x


def sizes_of(rows: int, lanes: int) -> list[int]:
    """Return the number of rows of each worker, by rank, given this worker's."""
    held = [len(held_lanes(lanes, place, num_workers())) for place in range(num_workers())]
    return [rows // held[rank()] * count for count in held]
