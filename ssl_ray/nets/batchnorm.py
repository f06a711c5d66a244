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


class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Statistics over the batches of all workers; the gradient flows through them (two all-reduces a pass). For [n, C] and
    [n, C, H, W].

    With equal batches on all workers, outputs and gradients equal those of one worker with the whole batch, up to float
    rounding. In eval mode, or without a process group, it is torch's own.
    """

    def __init__(self, source: nn.modules.batchnorm._BatchNorm):
        super().__init__(source.num_features, source.eps, source.momentum, source.affine, source.track_running_stats)
        if source.bias is None:  # the last norm of a projection head has a scale alone
            self.register_parameter("bias", None)
        self.load_state_dict(source.state_dict())
        for mine, theirs in zip(self.parameters(), source.parameters(), strict=True):
            mine.requires_grad_(theirs.requires_grad)
        self.train(source.training)
        # timm keeps dropout and activation inside its batch norm.
        self.tail = nn.Sequential(*(getattr(source, part) for part in ("drop", "act") if hasattr(source, part)))

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.ndim not in (2, 4):
            raise ValueError(f"batch norm over workers takes [n, C] or [n, C, H, W], not {list(input.shape)}")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return self.tail(super().forward(x))
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        over = [axis for axis in range(x.ndim) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
        count = wide.numel() // wide.shape[1] * dist.get_world_size()
        mean = _SumOverWorkers.apply(wide.sum(dim=over)) / count
        centred = wide - mean.reshape(shape)
        variance = _SumOverWorkers.apply(centred.square().sum(dim=over)) / count
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            momentum = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), momentum)
        scale = torch.rsqrt(variance + self.eps)
        normal = centred * scale.reshape(shape)
        if self.affine:
            normal = normal * self.weight.reshape(shape)
            normal = normal if self.bias is None else normal + self.bias.reshape(shape)
        return self.tail(normal.to(x.dtype))


def synchronise(net: nn.Module, device: torch.device) -> nn.Module:
    """Make all batch norms of a net global, in place where that is possible; returns the net."""
    if device.type == "cuda":
        from timm.layers import convert_sync_batchnorm  # torch's converter would lose timm's fused activations

        return convert_sync_batchnorm(net)
    if isinstance(net, nn.BatchNorm2d | nn.BatchNorm1d):
        return GlobalBatchNorm(net)
    for name, child in net.named_children():
        setattr(net, name, synchronise(child, device))
    return net


def is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)
