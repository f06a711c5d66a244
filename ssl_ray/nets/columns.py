"""AlexNet and VGG: plain stacks of convolutions, whose named layers transfer and probes ask for.

Both end in a map that is averaged to `grid` x `grid` cells. Pooling rounds up, as Caffe's does: a tile of 64 pixels gives
AlexNet's pool5 3 x 3 cells with it, and 2 x 2 without; and a map of one pixel stays one.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from ssl_ray.settings.nets import VGG, Norm


class Columns(nn.Module):
    """Named layers, one after the other: float [n, 3, H, W] -> [n, channels * grid^2]."""

    def __init__(self, layers: OrderedDict[str, nn.Module], channels: int, grid: int):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.grid, self.num_features = grid, channels * grid * grid
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.children():
            x = layer(x)
        return F.adaptive_avg_pool2d(x, self.grid).flatten(1)


class CeilPool(nn.MaxPool2d):
    """Max pooling that rounds up, as Caffe's, and leaves a map of one pixel as it is."""

    def __init__(self, kernel: int, stride: int):
        super().__init__(kernel, stride, ceil_mode=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.shape[-1] == x.shape[-2] == 1 else super().forward(x)


def alexnet(multiplier: float, stem_stride: int, small_image: bool, norm: Norm, grid: int) -> Columns:
    """AlexNet as in Caffe: 96, 256, 384, 384, 256 channels, groups of two in conv2, conv4 and conv5; layers conv1 ... pool5.

    Source: the authors' code of Jigsaw (Noroozi and Favaro, ECCV 2016) and Caffe's reference model. The stride of conv1 is
    two in the pretext and four in transfer, with the same weights. Initial weights are He's instead of a Gaussian of 0.01,
    and with norm=batch there is batch norm instead of response normalisation (lrn), so that it learns in fewer steps.

    Args:
        small_image: conv1 is 3 x 3 instead of 11 x 11, for images or tiles of a few dozen pixels.
    """
    widths = [max(2, 2 * round(multiplier * width / 2)) for width in (96, 256, 384, 384, 256)]
    stem = (3, stem_stride, 1) if small_image else (11, stem_stride, 0)
    shapes = [(*stem, 1), (5, 1, 2, 2), (3, 1, 1, 1), (3, 1, 1, 2), (3, 1, 1, 2)]  # kernel, stride, padding, groups
    layers, inputs = OrderedDict[str, nn.Module](), 3
    for number, (width, (kernel, stride, padding, groups)) in enumerate(zip(widths, shapes, strict=True), start=1):
        layers[f"conv{number}"] = _conv(inputs, width, kernel, stride, padding, groups, norm)
        if number in (1, 2, 5):
            layers[f"pool{number}"] = CeilPool(3, 2)
        if norm == "lrn" and number in (1, 2):
            layers[f"norm{number}"] = nn.LocalResponseNorm(5, 1e-4, 0.75)
        inputs = width
    return Columns(layers, inputs, grid)


def vgg(depth: int, multiplier: float, norm: Norm, grid: int) -> Columns:
    """VGG of 11 to 19 layers without its fully connected ones: blocks conv1 ... conv5 and pool1 ... pool5."""
    layers, inputs = OrderedDict[str, nn.Module](), 3
    for block, count in enumerate(VGG[depth], start=1):
        width = max(1, round(multiplier * min(512, 32 * 2**block)))
        inner = OrderedDict[str, nn.Module]()
        for number in range(1, count + 1):
            inner[str(number)] = _conv(inputs, width, 3, 1, 1, 1, norm)
            inputs = width
        layers[f"conv{block}"] = nn.Sequential(inner)
        layers[f"pool{block}"] = CeilPool(2, 2)
    return Columns(layers, inputs, grid)


def _conv(inputs: int, outputs: int, kernel: int, stride: int, padding: int, groups: int, norm: Norm) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=norm != "batch")
    between = [nn.BatchNorm2d(outputs)] if norm == "batch" else []
    return nn.Sequential(conv, *between, nn.ReLU(inplace=True))
