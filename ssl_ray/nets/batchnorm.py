"""Batch norm over all workers, on CPUs too: torch's own SyncBatchNorm refuses tensors that are not on a GPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn


class _SumOverWorkers(torch.autograd.Function):
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


class GlobalBatchNorm(nn.BatchNorm2d):
    """Statistics over the batches of all workers; the gradient flows through them (two all-reduces a pass).

    With equal batches on all workers, outputs and gradients equal those of one worker with the whole batch, up to float
    rounding. In eval mode, or without a process group, it is `nn.BatchNorm2d`.
    """

    def __init__(self, source: nn.BatchNorm2d):
        super().__init__(source.num_features, source.eps, source.momentum, source.affine, source.track_running_stats)
        self.load_state_dict(source.state_dict())
        # timm keeps dropout and activation inside its batch norm.
        self.tail = nn.Sequential(*(getattr(source, part) for part in ("drop", "act") if hasattr(source, part)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return self.tail(super().forward(x))
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        count = wide.shape[0] * wide.shape[2] * wide.shape[3] * dist.get_world_size()
        mean = _SumOverWorkers.apply(wide.sum(dim=(0, 2, 3))) / count
        centred = wide - mean[None, :, None, None]
        variance = _SumOverWorkers.apply(centred.square().sum(dim=(0, 2, 3))) / count
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            momentum = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), momentum)
        scale = torch.rsqrt(variance + self.eps)
        normal = centred * scale[None, :, None, None]
        if self.affine:
            normal = normal * self.weight[None, :, None, None] + self.bias[None, :, None, None]
        return self.tail(normal.to(x.dtype))


def synchronise(net: nn.Module, device: torch.device) -> nn.Module:
    """Make all batch norms of a net global, in place where that is possible; returns the net."""
    if device.type == "cuda":
        from timm.layers import convert_sync_batchnorm  # torch's converter would lose timm's fused activations

        return convert_sync_batchnorm(net)
    if isinstance(net, nn.BatchNorm2d):
        return GlobalBatchNorm(net)
    for name, child in net.named_children():
        setattr(net, name, synchronise(child, device))
    return net


def is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)
