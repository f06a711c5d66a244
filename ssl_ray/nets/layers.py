"""Features of a named layer: where in a net, and how a map becomes a vector."""

from __future__ import annotations

import difflib

import torch
import torch.nn.functional as F
from torch import nn

from ssl_ray.errors import ConfigError
from ssl_ray.settings.nets import LayerConfig


def vectors_of(found: torch.Tensor, layer: LayerConfig) -> torch.Tensor:
    """What a layer gave, as vectors: maps [n, C, h, w] are pooled and flattened, tokens [n, t, C] averaged: float32 [n, D]."""
    found = found if found.dtype == torch.float64 else found.float()
    if found.ndim == 4 and layer.grid is not None:
        pool = F.adaptive_avg_pool2d if layer.pool == "average" else F.adaptive_max_pool2d
        found = pool(found, layer.grid)
    elif found.ndim == 3:
        found = found.mean(dim=1)
    found = found.flatten(1)
    return F.normalize(found, dim=1) if layer.normalise else found


def layer_outputs(backbone: nn.Module, x: torch.Tensor, names: list[str]) -> dict[str, torch.Tensor]:
    """One pass, and what the named modules of the backbone gave.

    Raises:
        ConfigError: there is no such module.
    """
    seen: dict[str, torch.Tensor] = {}
    handles = [
        module_named(backbone, name).register_forward_hook(lambda _, inputs, output, name=name: seen.__setitem__(name, output))
        for name in names
    ]
    try:
        backbone(x)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def module_named(backbone: nn.Module, name: str) -> nn.Module:
    """Raises ConfigError, with the nearest names, if there is none of that name."""
    found = dict(backbone.named_modules())
    if not name or name not in found:
        names = [known for known in found if known]
        near = difflib.get_close_matches(name, names, n=5, cutoff=0.0)
        raise ConfigError(f"the backbone has no layer {name!r}; the nearest are {', '.join(near)}")
    return found[name]


def layer_features(backbone: nn.Module, x: torch.Tensor, layer: LayerConfig) -> torch.Tensor:
    """float [n, 3, H, W] -> float32 [n, D]."""
    if layer.name is None:
        return vectors_of(backbone(x), layer)
    return vectors_of(layer_outputs(backbone, x, [layer.name])[layer.name], layer)
