"""Build backbones by name, from this package, timm or torchvision."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from ssl_ray.machine import check_memory
from ssl_ray.nets.columns import alexnet, vgg
from ssl_ray.nets.library import timm_backbone, torchvision_backbone
from ssl_ray.nets.noise import NoiseSource
from ssl_ray.nets.resnet import ResNet
from ssl_ray.nets.small_resnet import SmallResNet
from ssl_ray.nets.spinenet import SpineNet

if TYPE_CHECKING:
    from ssl_ray.settings.nets import NetConfig


def make_backbone(config: NetConfig, noise: NoiseSource) -> tuple[nn.Module, int]:
    """Build the backbone that the settings name; return it and the number of its features.

    Raises:
        ConfigError: an unknown net.
        ResourceError: its weights do not fit into memory.
    """
    if not config.name.startswith(("timm:", "torchvision:")):  # no setting changes the size of these
        try:
            with torch.random.fork_rng(devices=[]), torch.device("meta"):  # shapes without memory
                backbone, _ = _make(config, NoiseSource())
            needed = float(sum(4 * tensor.numel() for tensor in (*backbone.parameters(), *backbone.buffers())))
        except (RuntimeError, OverflowError, TypeError):  # a shape beyond 64 bits
            needed = math.inf
        check_memory(f"the weights of {config.name}", needed, "lower net.width, net.blocks or net.multiplier")
    return _make(config, noise)


def _make(config: NetConfig, noise: NoiseSource) -> tuple[nn.Module, int]:
    family, _, name = config.name.partition(":")
    if family == "small_resnet":
        small = SmallResNet(config.width, config.blocks, config.stochastic_depth, noise, config.stem_stride)
        return small, small.num_features
    if family == "resnet":
        net = ResNet(int(name), config.multiplier, config.selective_kernels, config.small_image)
        return net, net.num_features
    if family in ("alexnet", "vgg"):
        if family == "alexnet":
            columns = alexnet(config.multiplier, config.stem_stride, config.small_image, config.norm, config.grid)
        else:
            columns = vgg(int(name), config.multiplier, config.norm, config.grid)
        return columns, columns.num_features
    if family == "spinenet":
        spine = SpineNet(name, config.multiplier)
        return spine, spine.num_features
    if family == "timm":
        return timm_backbone(name, config.stochastic_depth, noise, config.small_image)
    return torchvision_backbone(name, config.stochastic_depth, noise)
