"""Backbones from timm and torchvision by name, without their classifiers; the noise modules are replaced by ours.

Both libraries take seconds to import, so they are imported where a net of theirs is built.
"""

from __future__ import annotations

import difflib
from typing import Any

from torch import nn

from ssl_ray.errors import ConfigError
from ssl_ray.nets.noise import NoiseSource, adopt


def timm_backbone(name: str, stochastic_depth: float, source: NoiseSource, small_image: bool) -> tuple[nn.Module, int]:
    """A timm net that returns pooled features, and how many."""
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.3)
        raise ConfigError(f"timm has no net {name!r}; the nearest are {', '.join(near) or 'listed by timm.list_models()'}")
    options: dict[str, Any] = {"drop_path_rate": stochastic_depth} if stochastic_depth else {}
    try:
        net = timm.create_model(name, pretrained=False, num_classes=0, **options)
    except TypeError:
        raise ConfigError(f"timm:{name} has no stochastic depth; set net.stochastic_depth=0") from None
    if small_image:
        _keep_resolution(net, name)
    adopt(net, source)
    return net, int(getattr(net, "head_hidden_size", net.num_features))


def torchvision_backbone(name: str, stochastic_depth: float, source: NoiseSource) -> tuple[nn.Module, int]:
    """A torchvision classifier whose last linear layer is taken off, and the width of what entered it."""
    from torchvision import models

    if name not in models.list_models():
        near = difflib.get_close_matches(name, models.list_models(), n=5, cutoff=0.3)
        raise ConfigError(f"torchvision has no net {name!r}; the nearest are {', '.join(near)}")
    options: dict[str, Any] = {"stochastic_depth_prob": stochastic_depth} if stochastic_depth else {}
    try:
        net = models.get_model(name, weights=None, **options)
    except (TypeError, ValueError):
        raise ConfigError(f"torchvision:{name} has no stochastic depth; set net.stochastic_depth=0") from None
    linear = [path for path, module in net.named_modules() if isinstance(module, nn.Linear)]
    if not linear or len(linear[-1].split(".")) > 2:
        raise ConfigError(f"torchvision:{name} does not end in a linear classifier; choose a classification net")
    *parent, leaf = linear[-1].split(".")
    holder = net.get_submodule(".".join(parent))
    features = int(getattr(holder, leaf).in_features)
    setattr(holder, leaf, nn.Identity())
    # The dropout in front of the classifier is ours to place, once.
    if isinstance(holder, nn.Sequential) and leaf.isdigit() and int(leaf) and isinstance(holder[int(leaf) - 1], nn.Dropout):
        holder[int(leaf) - 1] = nn.Identity()
    adopt(net, source)
    return net, features


def _keep_resolution(net: nn.Module, name: str) -> None:
    """EfficientNet for 32 pixel images: stages 2 and 3 at stride 1, as `small_image_model` in the released code."""
    stages = getattr(net, "blocks", None)
    if "efficientnet" not in name or stages is None:
        raise ConfigError(f"net.small_image changes the strides of an EfficientNet; timm:{name} is none")
    for stage in (stages[1], stages[2]):
        for module in stage[0].modules():
            if isinstance(module, nn.Conv2d) and module.stride != (1, 1):
                module.stride = (1, 1)
