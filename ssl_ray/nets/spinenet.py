"""SpineNet: a backbone whose blocks change scale to and fro, and whose outputs are levels of a pyramid already.

Implements: *SpineNet: Learning Scale-Permuted Backbone for Recognition and Localization* (Du et al., CVPR 2020): blocks,
connections and sizes 49S to 190 as in the released code (tensorflow/models, `spinenet.py`).

Differs from the code: for classification all levels are averaged and pooled, since the released classifier is another one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ssl_ray.settings.nets import SIZES, SPINE_LEVELS

BLOCKS: tuple[tuple[int, str, int, int, bool], ...] = (
    (2, "bottleneck", 0, 1, False),
    (4, "residual", 0, 1, False),
    (3, "bottleneck", 2, 3, False),
    (4, "bottleneck", 2, 4, False),
    (6, "residual", 3, 5, False),
    (4, "bottleneck", 3, 5, False),
    (5, "residual", 6, 7, False),
    (7, "residual", 6, 8, False),
    (5, "bottleneck", 8, 9, False),
    (5, "bottleneck", 8, 10, False),
    (4, "bottleneck", 5, 10, True),
    (3, "bottleneck", 4, 10, True),
    (5, "bottleneck", 7, 12, True),
    (7, "bottleneck", 5, 14, True),
    (6, "bottleneck", 12, 14, True),
)
"""Level, kind, the two blocks that enter (0 and 1 are the stem's), and whether the block is an output."""

WIDTHS = {2: 64, 3: 128, 4: 256, 5: 256, 6: 256, 7: 256}
"""Channels inside a block of a level; a bottleneck has four times as many outside."""

STEM = 2
"""Blocks of level 2 that the stem makes."""


def _conv(inputs: int, outputs: int, size: int, stride: int = 1, act: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if act else []))


class _Block(nn.Module):
    """A residual block of two 3x3 convolutions, or a bottleneck; where channels differ it projects its input."""

    def __init__(self, inputs: int, width: int, kind: str):
        super().__init__()
        outputs = width * (4 if kind == "bottleneck" else 1)
        if kind == "bottleneck":
            self.body = nn.Sequential(_conv(inputs, width, 1), _conv(width, width, 3), _conv(width, outputs, 1, act=False))
        else:
            self.body = nn.Sequential(_conv(inputs, width, 3), _conv(width, width, 3, act=False))
        self.shortcut: nn.Module = nn.Identity() if inputs == outputs else _conv(inputs, outputs, 1, act=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def _group(inputs: int, width: int, kind: str, repeats: int) -> nn.Sequential:
    outputs = width * (4 if kind == "bottleneck" else 1)
    return nn.Sequential(*(_Block(inputs if index == 0 else outputs, width, kind) for index in range(repeats)))


class _Resample(nn.Module):
    """A map of one block as another block wants it: fewer channels, the other scale, its channels."""

    def __init__(self, inputs: int, width: int, outputs: int, alpha: float, down: int):
        super().__init__()
        inner = max(1, int(width * alpha))
        self.down = down  # levels to go: strided first, then by maxima; negative: up
        self.first = _conv(inputs, inner, 1)
        self.stride = _conv(inner, inner, 3, 2) if down > 0 else nn.Identity()
        self.last = _conv(inner, outputs, 1, act=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stride(self.first(x))
        for _ in range(self.down - 1):
            x = F.max_pool2d(x, 3, 2, 1)
        if self.down < 0:
            x = F.interpolate(x, scale_factor=2.0**-self.down, mode="nearest")
        return self.last(x)


class SpineNet(nn.Module):
    """float [n, 3, H, W], sides a multiple of 128 -> float [n, num_features]; `levels` gives the maps of strides 8 to 128."""

    def __init__(self, size: str, multiplier: float = 1.0):
        super().__init__()
        chosen = SIZES[size]
        scale = chosen.scale * multiplier

        def width(level: int) -> int:
            return max(8, int(WIDTHS[level] * scale))

        self.num_features = max(8, int(chosen.outputs * multiplier))
        self.stem = nn.Sequential(_conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1))
        levels, widths, channels = [2] * STEM, [width(2)] * STEM, [4 * width(2)] * STEM
        self.first = nn.ModuleList(
            _group(64 if index == 0 else 4 * width(2), width(2), "bottleneck", chosen.repeats) for index in range(STEM)
        )
        self.resamples, self.groups, self.ends = nn.ModuleList(), nn.ModuleList(), nn.ModuleDict()
        self._extra: list[list[int]] = []  # blocks that nothing used, which an output of their level takes in
        used = [0] * STEM
        for level, kind, a, b, is_output in BLOCKS:
            inside = width(level)
            outside = inside * (4 if kind == "bottleneck" else 1)
            self.resamples.append(
                nn.ModuleList(_Resample(channels[i], widths[i], outside, chosen.alpha, level - levels[i]) for i in (a, b))
            )
            used[a] += 1
            used[b] += 1
            lonely = [i for i, count in enumerate(used) if not count and (levels[i], channels[i]) == (level, outside)]
            self._extra.append(lonely if is_output else [])
            for i in self._extra[-1]:
                used[i] += 1
            self.groups.append(_group(outside, inside, kind, chosen.repeats))
            levels.append(level)
            widths.append(inside)
            channels.append(outside)
            used.append(0)
            if is_output:
                self.ends[str(level)] = _conv(outside, self.num_features, 1)

    def levels(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Maps of strides 8, 16, 32, 64 and 128, all of `num_features` channels."""
        x = self.stem(x)
        maps: list[torch.Tensor] = []
        for group in self.first:
            x = group(x)
            maps.append(x)
        found: dict[int, torch.Tensor] = {}
        for (level, _, a, b, is_output), resample, group, extra in zip(
            BLOCKS, self.resamples, self.groups, self._extra, strict=True
        ):
            merged = resample[0](maps[a]) + resample[1](maps[b])  # type: ignore[index]
            for index in extra:
                merged = merged + maps[index]
            maps.append(group(F.relu(merged)))
            if is_output:
                found[level] = self.ends[str(level)](maps[-1])
        return [found[level] for level in SPINE_LEVELS]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = torch.stack([item.mean(dim=(2, 3)) for item in self.levels(x)])
        return pooled.mean(dim=0)
