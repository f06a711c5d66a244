"""Feature pyramids: maps of several strides, all with the same channels and all knowing what the others saw.

fpn       Feature Pyramid Networks (Lin et al., CVPR 2017), torchvision's
nas-fpn   NAS-FPN (Ghiasi et al., CVPR 2019): seven merging cells, several times over; ours, since no library has it. The
          cells are those of the released code of TensorFlow's detection models (`nasfpn.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ssl_ray.settings.nets import LEVELS, PyramidNorm


def norm_layer(norm: PyramidNorm) -> Callable[[int], nn.Module] | None:
    """batch, group (32 groups, or as many as leave four channels each), or none."""
    if norm == "none":
        return None
    if norm == "batch":
        return nn.BatchNorm2d
    return lambda channels: nn.GroupNorm(max(1, min(32, channels // 4)), channels)


class LevelNorm(nn.Module):
    """A batch norm for every level of a pyramid, behind a convolution that all levels share: their statistics differ.

    The levels come in order, finest first; `begin` says that the next one is the first.
    """

    def __init__(self, channels: int, levels: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(levels))
        self._next = 0

    def begin(self) -> None:
        self._next = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.norms[self._next](x)
        self._next = (self._next + 1) % len(self.norms)
        return found


class FPN(nn.Module):
    """Top-down sums, and smaller maps by strided convolutions above the last: list of maps -> list of maps, finest first."""

    def __init__(self, channels: Sequence[int], width: int, extra: int, norm: PyramidNorm):
        super().__init__()
        from torchvision.ops import FeaturePyramidNetwork

        self.merge = FeaturePyramidNetwork(list(channels), width, norm_layer=norm_layer(norm))
        self.smaller = nn.ModuleList(nn.Conv2d(width, width, 3, 2, 1) for _ in range(extra))
        layer = norm_layer(norm) or (lambda channels: nn.Identity())
        self.norms = nn.ModuleList(layer(width) for _ in range(extra))

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        found = list(self.merge({str(index): item for index, item in enumerate(maps)}).values())
        last, smaller = found[-1], []
        for index, conv in enumerate(self.smaller):
            last = conv(F.relu(last) if index else last)
            smaller.append(last)
        return found + [norm(item) for norm, item in zip(self.norms, smaller, strict=True)]


CELLS: tuple[tuple[int, str, int, int], ...] = (
    (1, "attention", 1, 3),
    (1, "sum", 1, 5),
    (0, "sum", 0, 6),
    (1, "sum", 6, 7),
    (2, "attention", 7, 8),
    (4, "attention", 6, 9),
    (3, "attention", 9, 10),
)
"""Level (0 is the finest of five), how two maps are merged, and which two: 0 to 4 are what came in, finest first, 5 and on what
the cells made."""


class NASFPN(nn.Module):
    """Merging cells over five levels, `repeats` times: list of maps -> list of five maps, finest first.

    Differs from the paper: nothing known; ReLU, 3x3 convolution and norm follow every merge, as in the released code.
    """

    def __init__(self, channels: Sequence[int], width: int, norm: PyramidNorm, repeats: int):
        super().__init__()
        layer = norm_layer(norm) or (lambda channels: nn.Identity())
        plain = norm == "none"
        self.lateral = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs, width, 1, bias=plain), layer(width)) for inputs in channels
        )
        self.cells = nn.ModuleList(
            nn.ModuleList(nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=plain), layer(width)) for _ in CELLS)
            for _ in range(repeats)
        )

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        found = [conv(item) for conv, item in zip(self.lateral, maps, strict=True)]
        while len(found) < LEVELS:
            found.append(F.max_pool2d(found[-1], 2, 2, ceil_mode=True))
        for cells in self.cells:
            found = self._once(found, cells)
        return found

    @staticmethod
    def _once(maps: list[torch.Tensor], cells: nn.Module) -> list[torch.Tensor]:
        nodes, level_of, used = list(maps), list(range(LEVELS)), [0] * LEVELS
        sizes = [item.shape[2:] for item in maps]
        for (level, how, first, second), conv in zip(CELLS, cells, strict=True):  # type: ignore[call-overload]
            used[first] += 1
            used[second] += 1
            a, b = resampled(nodes[first], sizes[level]), resampled(nodes[second], sizes[level])
            if level_of[first] < level_of[second]:
                a, b = b, a  # the deeper one first
            node = a + b if how == "sum" else attended(a, b)
            if len(nodes) - LEVELS >= len(CELLS) - LEVELS:  # the last five cells make the outputs, which use what nothing used
                for index, (other, count) in enumerate(zip(level_of, used, strict=True)):
                    if other == level and not count:
                        node = node + nodes[index]
                        used[index] += 1
            nodes.append(conv(F.relu(node)))
            level_of.append(level)
            used.append(0)
        return [nodes[max(index for index, other in enumerate(level_of) if other == level)] for level in range(LEVELS)]


def attended(deep: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
    """The deeper map, and the finer one, its channels weighed by what the deeper one holds at most."""
    return deep + fine * torch.sigmoid(deep.amax(dim=(2, 3), keepdim=True))


def resampled(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Nearest neighbours upwards, maxima downwards."""
    if x.shape[2:] == torch.Size(size):
        return x
    if x.shape[2] < size[0]:
        return F.interpolate(x, size=tuple(size), mode="nearest")
    return F.adaptive_max_pool2d(x, tuple(size))
