"""Batch norm over all workers, on CPUs too: torch's own SyncBatchNorm refuses tensors that are not on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from ssl_ray.distributed import num_workers, share, sum_over_workers


class _InPlaceOf(nn.modules.batchnorm._BatchNorm):
    """Stands where a batch norm of a net stood: its parameters, statistics and mode."""

    def __init__(self, source: nn.modules.batchnorm._BatchNorm):
        super().__init__(source.num_features, source.eps, source.momentum, source.affine, source.track_running_stats)
        if source.bias is None:  # the last norm of a projection head has a scale alone
            self.register_parameter("bias", None)
        tensors = [*source.parameters(), *source.buffers()]
        if tensors:
            self.to(tensors[0].device, tensors[0].dtype)
        self.load_state_dict(source.state_dict())
        for mine, theirs in zip(self.parameters(), source.parameters(), strict=True):
            mine.requires_grad_(theirs.requires_grad)
        self.train(source.training)
        # timm keeps dropout and activation inside its batch norm.
        self.tail = nn.Sequential(*(getattr(source, part) for part in ("drop", "act") if hasattr(source, part)))

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.ndim not in (2, 4):
            raise ValueError(f"{type(self).__name__} takes [n, C] or [n, C, H, W], not {list(input.shape)}")

    def _momentum(self) -> float:
        """Count a batch; the share that it gets in the running statistics."""
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        return self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)


class GlobalBatchNorm(_InPlaceOf):
    """Statistics over the batches of all workers; the gradient flows through them (two all-reduces a pass). For [n, C] and
    [n, C, H, W].

    Outputs and gradients equal those of one worker with the whole batch, up to float rounding; workers' parts may differ in
    size. In eval mode, or without a process group, it is torch's own.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or num_workers() == 1:
            return self.tail(super().forward(x))
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        over = [axis for axis in range(x.ndim) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
        sums = sum_over_workers(torch.cat([wide.sum(dim=over), wide.new_full((1,), wide.numel() // wide.shape[1])]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = wide - mean.reshape(shape)
        variance = sum_over_workers(centred.square().sum(dim=over)) / count
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            momentum = self._momentum()
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), momentum)
        scale = torch.rsqrt(variance + self.eps)
        normal = centred * scale.reshape(shape)
        if self.affine:
            normal = normal * self.weight.reshape(shape)
            normal = normal if self.bias is None else normal + self.bias.reshape(shape)
        return self.tail(normal.to(x.dtype))


class SplitBatchNorm(_InPlaceOf):
    """Statistics over groups of so many images of a batch, in order: what a batch spread over several GPUs without
    synchronisation does, on one device. The running statistics take the mean over the groups. For [n, C] and [n, C, H, W].

    In eval mode it is torch's own.
    """

    def __init__(self, source: nn.modules.batchnorm._BatchNorm, group: int):
        super().__init__(source)
        self.group = group

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or len(x) <= self.group:
            return self.tail(super().forward(x))
        if len(x) % self.group:
            raise ValueError(f"{len(x)} images do not part into groups of {self.group}")
        assert self.running_mean is not None
        assert self.running_var is not None
        parts, momentum = x.split(self.group), self._momentum()
        means, variances = self.running_mean.repeat(len(parts), 1), self.running_var.repeat(len(parts), 1)
        normal = torch.cat(
            [
                F.batch_norm(part, mean, variance, self.weight, self.bias, True, momentum, self.eps)
                for part, mean, variance in zip(parts, means, variances, strict=True)
            ]
        )
        self.running_mean.copy_(means.mean(dim=0))
        self.running_var.copy_(variances.mean(dim=0))
        return self.tail(normal)


def split(net: nn.Module, group: int) -> nn.Module:
    """Let all batch norms of a net look at groups of so many images, in place where that is possible; returns the net."""
    return _replaced(net, lambda norm: SplitBatchNorm(norm, group))


def average_statistics(model: nn.Module, lanes: int) -> None:
    """Give all workers the mean of their running statistics, weighted by their lanes, in one message."""
    buffers = [
        buffer
        for module in model.modules()
        if is_batch_norm(module)
        for buffer in (module.running_mean, module.running_var)
        if isinstance(buffer, torch.Tensor)
    ]
    if not buffers:
        return
    flat = sum_over_workers(share(lanes) * torch.cat([buffer.flatten() for buffer in buffers]))
    for buffer, part in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(part.reshape(buffer.shape))


def synchronise(net: nn.Module, device: torch.device) -> nn.Module:
    """Make all batch norms of a net global, in place where that is possible; returns the net."""
    if device.type == "cuda":
        from timm.layers import convert_sync_batchnorm  # torch's converter would lose timm's fused activations

        return convert_sync_batchnorm(net)
    return _replaced(net, GlobalBatchNorm)


def _replaced(net: nn.Module, make: Callable[[nn.modules.batchnorm._BatchNorm], nn.Module]) -> nn.Module:
    if isinstance(net, nn.BatchNorm2d | nn.BatchNorm1d):
        return make(net)
    for name, child in net.named_children():
        setattr(net, name, _replaced(child, make))
    return net


@contextmanager
def kept_statistics(norms: Sequence[nn.modules.batchnorm._BatchNorm]) -> Iterator[None]:
    """Batch norms whose running statistics stay, whatever passes; in training they go on using those of the batch."""
    before = [(norm.momentum, None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None and count is not None:
                norm.num_batches_tracked.copy_(count)


def is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)
