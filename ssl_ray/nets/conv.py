"""Convolutions on CPUs where the library does badly: on maps of a few pixels a product of matrices beats its kernel several
times; with a stride, a 1 x 1 kernel can end the process, and a map of one pixel has wrong gradients.

Seen on two cores in bfloat16, where the weight gradients of 512 channels on 2 x 2 pixels took most of a ResNet-18's step at 64
pixels; from 4 x 4 pixels of output on there is no difference, on larger maps it is a loss. `benchmarks/pretrain_throughput.py`
measures whole steps.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

FEWEST_CHANNELS = 128
MOST_PIXELS = 4
"""Of the output, over which a product of matrices is slower."""


class StridedConv2d(nn.Conv2d):
    """`nn.Conv2d` that ignores its stride on a map of one pixel on a CPU, where the stride has no effect.

    With the stride, weight gradients in bfloat16 on a CPU are uninitialized memory.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "cpu" or x.shape[2:] != (1, 1):
            return super().forward(x)
        return F.conv2d(x, self.weight, self.bias, 1, self.padding, self.dilation, self.groups)


class SmallMapConv2d(StridedConv2d):
    """The same function as `nn.Conv2d`; on a CPU, where the output has at most 2 x 2 pixels, computed as one product."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size, step, pad = self.kernel_size[0], self.stride[0], int(self.padding[0])
        height, width = ((side + 2 * pad - size) // step + 1 for side in x.shape[2:])
        if x.device.type != "cpu" or height * width > MOST_PIXELS:
            return super().forward(x)
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, pad, pad, pad, pad))
        last_row, last_column = step * (height - 1) + 1, step * (width - 1) + 1
        patches = torch.cat(
            [padded[:, i : i + last_row : step, j : j + last_column : step] for i in range(size) for j in range(size)], dim=3
        )
        kernel = self.weight.permute(0, 2, 3, 1).reshape(self.out_channels, -1)
        product = F.linear(patches.reshape(-1, kernel.shape[1]), kernel, self.bias)
        return product.reshape(len(x), height, width, -1).permute(0, 3, 1, 2)  # channels last in memory


def mend(net: nn.Module) -> None:
    """Replace in place the strided convolutions of a net that fail on CPUs; parameters and their names stay.

    For a 1 x 1 kernel, the pixels at its stride are taken first and convolved without a stride, also in subclasses. The
    backward pass of oneDNN's kernel (torch 2.12 to 2.15) corrupts memory with 8 channels in bfloat16, and with fewer never
    ends on processors without AVX-512.
    """
    for module in net.modules():
        if not isinstance(module, nn.Conv2d) or max(module.stride) == 1:
            continue
        if module.kernel_size == (1, 1) and module.padding in ((0, 0), "valid"):
            module.register_forward_pre_hook(partial(_take_pixels, module.stride))
            module.stride = (1, 1)
        elif type(module) is nn.Conv2d and module.padding_mode == "zeros" and _keeps_one_pixel(module):
            module.__class__ = StridedConv2d


def _take_pixels(stride: tuple[int, ...], module: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
    """Return the pixels of a map [n, C, H, W] that a strided 1 x 1 kernel reads."""
    return inputs[0][:, :, :: stride[0], :: stride[1]]


def _keeps_one_pixel(module: nn.Conv2d) -> bool:
    """Return whether a map of one pixel stays a map of one pixel, with and without the stride."""
    if not isinstance(module.padding, tuple) or module.dilation != (1, 1):
        return False
    return all(2 * pad + 1 == size for pad, size in zip(module.padding, module.kernel_size, strict=True))


def quicken(net: nn.Module) -> None:
    """Let the deep convolutions of a net choose; their parameters stay what and where they are."""
    for module in net.modules():
        if (
            type(module) is nn.Conv2d
            and module.groups == 1
            and min(module.in_channels, module.out_channels) >= FEWEST_CHANNELS
            and module.kernel_size in ((3, 3), (1, 1))
            and module.padding in ((0, 0), (1, 1))
            and module.stride[0] == module.stride[1]
            and module.dilation == (1, 1)
            and module.padding_mode == "zeros"
        ):
            module.__class__ = SmallMapConv2d
