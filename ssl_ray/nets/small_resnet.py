"""A residual net for 28 to 32 pixel images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ssl_ray.nets.noise import DropPath, NoiseSource


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, drop: float, source: NoiseSource):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.drop_path = DropPath(drop, source)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(self.drop_path(branch) + self.shortcut(x))


class SmallResNet(nn.Module):
    """Three stages of 3x3 residual blocks, global average pooling: float [n, 3, H, W] -> float [n, num_features].

    Implements: the CIFAR form of ResNet (He et al., CVPR 2016, section 4.2), depth 6 * blocks + 2.
    Differs from the paper: projection shortcuts instead of padded ones, and stochastic depth with the linear decay rule
    (block i of n is dropped with probability `stochastic_depth * i / n`), for Noisy Student.
    """

    def __init__(self, width: int, blocks: int, stochastic_depth: float, source: NoiseSource, stem_stride: int = 1):
        super().__init__()
        total, index, channels = 3 * blocks, 0, width
        layers: list[nn.Module] = [
            nn.Conv2d(3, width, 3, stem_stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        for stage in range(3):
            for position in range(blocks):
                stride = 2 if stage and not position else 1
                drop = stochastic_depth * index / total
                layers.append(_Block(channels, width * 2**stage, stride, drop, source))
                channels, index = width * 2**stage, index + 1
        self.layers = nn.Sequential(*layers)
        self.num_features = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).mean(dim=(2, 3))
