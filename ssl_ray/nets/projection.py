"""The projection head of contrastive learning, and what fine-tuning keeps of it."""

from __future__ import annotations

import torch
from torch import nn

from ssl_ray.settings.nets import ProjectionConfig


class ProjectionHead(nn.Module):
    """float [n, num_features] -> float [n, dim].

    Implements: SimCLRv2, section 2 and the authors' code: every layer is dense without bias, then batch norm; hidden ones end
    in a ReLU; the last norm has a scale and no shift. Without `norm`, MoCo v2's: dense layers with bias, ReLU between them.
    """

    def __init__(self, num_features: int, config: ProjectionConfig):
        super().__init__()
        if not config.norm:
            plain = [nn.Sequential(nn.Linear(num_features, num_features), nn.ReLU()) for _ in range(config.layers - 1)]
            self.layers = nn.ModuleList([*plain, nn.Linear(num_features, config.dim)])
            return
        hidden = [_hidden(num_features) for _ in range(config.layers - 1)]
        norm = nn.BatchNorm1d(config.dim)
        norm.register_parameter("bias", None)
        self.layers = nn.ModuleList([*hidden, nn.Sequential(_dense(num_features, config.dim), norm)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def kept_layers(num_features: int, count: int) -> nn.Sequential:
    """The first hidden layers of a head, which fine-tuning keeps below its classifier: [n, num_features] -> the same."""
    return nn.Sequential(*(_hidden(num_features) for _ in range(count)))


def kept_weights(weights: dict[str, torch.Tensor], count: int) -> dict[str, torch.Tensor]:
    """The weights of `kept_layers` out of those of a pretrained encoder (keys `projection.layers.0...`)."""
    prefix = "projection.layers."
    found = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    return {key: value for key, value in found.items() if int(key.partition(".")[0]) < count}


def _hidden(width: int) -> nn.Sequential:
    return nn.Sequential(_dense(width, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True))


def _dense(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=0.01)
    return layer
