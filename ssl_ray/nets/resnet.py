"""The ResNet of SimCLRv2: any depth, a multiplier on all widths, selective kernels."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from ssl_ray.settings.nets import BLOCKS, BOTTLENECK

SK_RATIO = 1 / 16
"""Channels of the gate of selective kernels, as a share of the block's."""


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


def _conv_norm_relu(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(_conv(inputs, outputs, kernel, stride), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class SelectiveKernel(nn.Module):
    """One 3x3 convolution to two streams, and a softmax gate that mixes them: [n, inputs, H, W] -> [n, outputs, H', W'].

    Both streams are plain 3x3 (no dilation, no 5x5), as in the authors' code.
    """

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        middle = max(int(outputs * SK_RATIO), 32)
        self.streams = _conv_norm_relu(inputs, 2 * outputs, 3, stride)
        self.squeeze = _conv_norm_relu(outputs, middle, 1)
        self.gate = _conv(middle, 2 * outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        streams = torch.stack(self.streams(x).chunk(2, dim=1))  # [2, n, outputs, H', W']
        pooled = streams.sum(dim=0).mean(dim=(2, 3), keepdim=True)
        gates = torch.stack(self.gate(self.squeeze(pooled)).chunk(2, dim=1)).softmax(dim=0)
        return (streams * gates).sum(dim=0)


class _PooledShortcut(nn.Module):
    """ResNet-D: a 2x2 average instead of a stride. At stride 1 the average is taken all the same, as in the authors' code."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.stride = stride
        self.conv = _conv(inputs, outputs, 1)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padded = F.pad(x, (0, 1, 0, 1))
        pooled = F.avg_pool2d(padded, 2, self.stride)
        if self.stride == 1:  # TensorFlow's SAME does not count what was padded
            ones = F.pad(torch.ones_like(x[:1, :1]), (0, 1, 0, 1))
            pooled = pooled / F.avg_pool2d(ones, 2, 1)
        return self.norm(self.conv(pooled))


class _Block(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int, first: bool, bottleneck: bool, selective: bool):
        super().__init__()
        outputs = 4 * width if bottleneck else width
        layers: list[nn.Module]
        if bottleneck:
            middle = SelectiveKernel(width, width, stride) if selective else _conv_norm_relu(width, width, 3, stride)
            layers = [_conv_norm_relu(inputs, width, 1), middle, _conv(width, outputs, 1)]
        else:
            layers = [_conv_norm_relu(inputs, width, 3, stride), _conv(width, outputs, 3)]
        last = nn.BatchNorm2d(outputs)
        nn.init.zeros_(last.weight)  # a block begins as the identity
        self.branch = nn.Sequential(*layers, last)
        self.shortcut: nn.Module = nn.Identity()
        if first and selective:
            self.shortcut = _PooledShortcut(inputs, outputs, stride)
        elif first:  # also where the sizes agree (18 and 34), as in the authors' code
            self.shortcut = nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.branch(x) + self.shortcut(x))


class ResNet(nn.Module):
    """float [n, 3, H, W] -> float [n, num_features], num_features = 2048 * multiplier (512 * multiplier for 18 and 34).

    Implements: the encoder of SimCLRv2 (Chen et al., NeurIPS 2020, section 2 and the authors' code): the multiplier widens
    everything, the stem and the output too (which `wide_resnet` of torchvision does not); selective kernels instead of the
    3x3 convolution, and with them ResNet-D's stem of three convolutions and its pooled shortcuts.

    Differs from the paper: multipliers below 1 are allowed, for small machines.
    """

    def __init__(self, depth: int, multiplier: float = 1.0, selective: bool = False, small_image: bool = False):
        """
        Args:
            depth: 18, 34, 50, 101, 152 or 200.
            selective: selective kernels; for bottleneck nets (50 and deeper).
            small_image: a stem of one 3x3 convolution at stride 1 without pooling, for images of 32 pixels and less.
        """
        super().__init__()
        if selective and depth < BOTTLENECK:
            raise ValueError(f"selective kernels belong to nets of depth {BOTTLENECK} and more, not {depth}")
        bottleneck = depth >= BOTTLENECK
        base = max(1, round(64 * multiplier))
        if small_image:
            self.stem = nn.Sequential(_conv_norm_relu(3, base, 3))
        elif selective:
            half = base // 2
            stem = [_conv_norm_relu(3, half, 3, 2), _conv_norm_relu(half, half, 3), _conv_norm_relu(half, base, 3)]
            self.stem = nn.Sequential(*stem, nn.MaxPool2d(3, 2, 1))
        else:
            self.stem = nn.Sequential(_conv_norm_relu(3, base, 7, 2), nn.MaxPool2d(3, 2, 1))
        channels, groups = base, []
        for group, count in enumerate(BLOCKS[depth]):
            width, blocks = base * 2**group, []
            for position in range(count):
                stride = 2 if group and not position else 1
                blocks.append(_Block(channels, width, stride, position == 0, bottleneck, selective))
                channels = 4 * width if bottleneck else width
            groups.append(nn.Sequential(*blocks))
        self.groups = nn.Sequential(*groups)
        self.num_features = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                _variance_scaling(module.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.groups(self.stem(x)).mean(dim=(2, 3))


def _variance_scaling(weight: torch.Tensor) -> None:
    """TensorFlow's default: a normal cut at two deviations, with the variance 1 / fan-in after the cut."""
    deviation = math.sqrt(1.0 / weight[0].numel()) / 0.87962566103423978
    nn.init.trunc_normal_(weight, std=deviation, a=-2 * deviation, b=2 * deviation)
