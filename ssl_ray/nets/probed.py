"""A frozen net with a linear classifier on each of several layers, all trained in one pass."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from ssl_ray.nets.layers import layer_outputs, vectors_of
from ssl_ray.settings.nets import DIMENSIONS, LayerConfig


class LayerProbes(nn.Module):
    """float [n, 3, H, W] -> logits of all layers side by side, [n, layers * classes].

    Implements: linear probes of every convolution with some 9,000 features each (the widths of Split-Brain, Zhang et al.,
    CVPR 2017): a batch norm without scale and shift on the pooled map, then a linear classifier; the net is frozen, in eval
    mode.

    Differs from it: maps are averaged to their grid, where Split-Brain's are resized; classifiers begin at zero.
    """

    def __init__(self, backbone: nn.Module, layers: dict[str, LayerConfig], size: int, num_classes: int):
        """
        Args:
            layers: what is probed, under which name.
            size: of the images in pixels; widths follow from it.
        """
        super().__init__()
        self.backbone, self.layers, self.size, self.num_classes = backbone, layers, size, num_classes
        backbone.eval().requires_grad_(False)
        with torch.no_grad():
            found = self._vectors(torch.zeros(1, 3, size, size))
        # Module names must not have dots.
        self.norms = nn.ModuleList([nn.BatchNorm1d(vector.shape[1], affine=False) for vector in found])
        self.heads = nn.ModuleList([nn.Linear(vector.shape[1], num_classes) for vector in found])
        for head in self.heads:
            nn.init.zeros_(head.weight)  # type: ignore[arg-type]
            nn.init.zeros_(head.bias)  # type: ignore[arg-type]

    def _vectors(self, x: torch.Tensor) -> list[torch.Tensor]:
        names = [str(layer.name) for layer in self.layers.values()]
        found = layer_outputs(self.backbone, x, names)
        return [vectors_of(found[name], layer) for name, layer in zip(names, self.layers.values(), strict=True)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            vectors = self._vectors(x)
        return torch.cat(
            [head(norm(vector)) for head, norm, vector in zip(self.heads, self.norms, vectors, strict=True)], dim=1
        )

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """The logits: what is stored of an image, so that every layer can be judged later."""
        return self(x)

    def train(self, mode: bool = True) -> LayerProbes:
        super().train(mode)
        self.backbone.eval()
        return self


def fitting_grids(backbone: nn.Module, names: list[str], size: int, dimensions: int = DIMENSIONS) -> dict[str, LayerConfig]:
    """The largest pooling of each layer that gives at most so many dimensions.

    Raises:
        ConfigError: the backbone has no layer of that name.
    """
    was = backbone.training
    backbone.eval()
    with torch.no_grad():
        found = layer_outputs(backbone, torch.zeros(1, 3, size, size), names)
    backbone.train(was)
    grids = {}
    for name in names:
        shape = found[name].shape
        grid = 1
        if len(shape) == 4:
            grid = max(1, min(math.isqrt(dimensions // int(shape[1])), int(shape[2]), int(shape[3])))
        grids[name] = LayerConfig(name=name, grid=grid)
    return grids


def losses_of(logits: torch.Tensor, labels: torch.Tensor, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of every layer [layers], and its accuracy [layers]."""
    by_layer = logits.reshape(len(logits), -1, num_classes).float()
    count = by_layer.shape[1]
    loss = F.cross_entropy(by_layer.flatten(0, 1), labels.repeat_interleave(count), reduction="none").reshape(-1, count)
    right = (by_layer.argmax(dim=2) == labels[:, None]).float()
    return loss.mean(dim=0), right.mean(dim=0)
