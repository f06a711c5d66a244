"""The context-free network: one backbone for nine tiles, and a head that sees what all of them gave."""

from __future__ import annotations

import torch
from torch import nn

from ssl_ray.errors import ConfigError
from ssl_ray.machine import check_dense
from ssl_ray.nets.layers import layer_features
from ssl_ray.nets.noise import Dropout, NoiseSource
from ssl_ray.settings.nets import LayerConfig, PuzzleHeadConfig


class ContextFree(nn.Module):
    """Tiles float [n, 9, 3, T, T] -> logits of permutations [n, P].

    Implements: the context-free network of Jigsaw (Noroozi and Favaro, ECCV 2016), around any backbone.
    """

    def __init__(
        self, backbone: nn.Module, tiles: int, size: int, permutations: int, config: PuzzleHeadConfig, noise: NoiseSource
    ):
        """
        Args:
            tiles: of a puzzle.
            size: of a tile in pixels, from which the width of the backbone's layer follows.
        """
        super().__init__()
        self.backbone, self.config, self.noise = backbone, config, noise
        width = _dry_pass(backbone, size, config.layer)
        check_dense((width, config.tile), "head.tile")
        check_dense((tiles * config.tile, config.hidden, permutations), "head.tile or head.hidden")
        self.fc6 = _dense(width, config.tile, config.norm)
        self.drop6 = Dropout(config.dropout, noise)
        self.fc7 = _dense(tiles * config.tile, config.hidden, config.norm)
        self.drop7 = Dropout(config.dropout, noise)
        self.fc8 = nn.Linear(config.hidden, permutations)
        nn.init.normal_(self.fc8.weight, std=0.01)
        nn.init.zeros_(self.fc8.bias)

    def forward(self, tiles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of the first tile [n, width], which the watch over collapse looks at, and logits [n, P]."""
        count, number = tiles.shape[:2]
        flat = tiles.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        found = layer_features(self.backbone, flat, self.config.layer)
        joined = self.drop6(self.fc6(found).reshape(count, -1))
        return found.reshape(count, number, -1)[:, 0], self.fc8(self.drop7(self.fc7(joined)))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """float [n, num_features]: what the backbone gives of whole images, pooled."""
        return self.backbone(x)


def _dense(inputs: int, outputs: int, norm: bool) -> nn.Sequential:
    layer = nn.Linear(inputs, outputs, bias=not norm)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layer, *([nn.BatchNorm1d(outputs)] if norm else []), nn.ReLU(inplace=True))


def _dry_pass(backbone: nn.Module, size: int, layer: LayerConfig) -> int:
    """Width of a layer's features of a tile. What of the backbone gives nothing to that layer will not learn.

    Raises:
        ConfigError: the backbone cannot take tiles of that size, or has no such layer.
    """
    was = backbone.training
    backbone.eval()
    try:
        with torch.enable_grad():
            found = layer_features(backbone, torch.zeros(1, 3, size, size), layer)
    except ConfigError:
        raise
    except Exception as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"the net does not take tiles of {size} pixels ({first}); take larger images (preprocess.size), a net for "
            "small ones (net.small_image=true for alexnet), or another net"
        ) from None
    found.sum().backward()
    for parameter in backbone.parameters():
        # Workers wait for the gradients of all parameters that learn.
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None
    backbone.train(was)
    return int(found.shape[1])
