"""Detectors and segmenters: any backbone, a pyramid, and a head. Parts of torchvision where it has them.

    retinanet   RetinaNet (Lin et al., ICCV 2017): P3 to P7, nine anchors a place, of three sizes and three shapes
    fcos        FCOS (Tian et al., ICCV 2019), with torchvision's losses and group norms in its head
    fpn         segmentation: the levels of a pyramid, added at the finest one, then convolutions
    deeplabv3   segmentation: DeepLabV3's head (Chen et al., 2017) on the deepest map

The same norm layers and the same trainable layers for every start, so that what a start is worth is measured and nothing else:
torchvision's own constructors freeze norms and stages where weights are given.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ssl_ray.errors import ConfigError
from ssl_ray.losses.boxes import Targets, at_least_float32, retina_losses
from ssl_ray.nets.maps import Maps
from ssl_ray.nets.noise import NoiseSource
from ssl_ray.nets.pyramid import FPN, NASFPN, LevelNorm, norm_layer
from ssl_ray.nets.spinenet import SpineNet
from ssl_ray.nets.weights import load_backbone
from ssl_ray.settings.nets import SPINE_LEVELS, DetectorConfig, SegmenterConfig


class DenseNet(nn.Module):
    """What detectors and segmenters share: a backbone with maps, which begins with any weights that fit it."""

    maps: Maps
    noise: NoiseSource

    @property
    def backbone(self) -> nn.Module:
        return self.maps.backbone

    def begin_with(self, weights: dict[str, torch.Tensor], fresh_head: bool = False) -> None:
        """All weights of a net of the same form, or the backbone of any other checkpoint, and with `fresh_head`.

        Raises:
            ConfigError: they belong to another architecture.
        """
        if fresh_head or not any(key.startswith("maps.backbone.") for key in weights):
            inner = {key.removeprefix("maps."): value for key, value in weights.items()}
            load_backbone(self.backbone, inner, "the checkpoint to begin with")
            return
        try:
            self.load_state_dict(weights)
        except RuntimeError as error:
            first = str(error).strip().splitlines()[-1].strip()
            raise ConfigError(
                f"the checkpoint to begin with does not fit the net: {first}; choose the net that it was made with, or "
                "fresh_head=true to take its backbone alone"
            ) from None


class Detector(DenseNet):
    """float [n, 3, S, S] -> `cls_logits` [n, A, C] and `bbox_regression` [n, A, 4] (FCOS: `bbox_ctrness` too)."""

    def __init__(self, backbone: nn.Module, num_classes: int, config: DetectorConfig, noise: NoiseSource):
        super().__init__()
        from torchvision.models.detection import _utils as parts
        from torchvision.models.detection.anchor_utils import AnchorGenerator
        from torchvision.models.detection.fcos import FCOS
        from torchvision.models.detection.retinanet import RetinaNet, RetinaNetHead

        self.config, self.noise, self.num_classes = config, noise, num_classes
        pyramid = config.pyramid
        self.pyramid: nn.Module = nn.Identity()
        if isinstance(backbone, SpineNet):  # which is its own pyramid
            wanted = (pyramid.strides[0], config.levels, pyramid.width)
            if wanted != (2 ** SPINE_LEVELS[0], len(SPINE_LEVELS), backbone.num_features):
                raise ConfigError(
                    f"spinenet gives {len(SPINE_LEVELS)} levels from stride {2 ** SPINE_LEVELS[0]} on, {backbone.num_features} "
                    "wide; set head.levels, head.pyramid.strides and head.pyramid.width to that"
                )
            self.maps = Maps.of_levels(backbone)
        else:
            self.maps = Maps(backbone, pyramid.strides)
            if pyramid.name == "fpn":
                self.pyramid = FPN(self.maps.channels, pyramid.width, config.levels - len(pyramid.strides), pyramid.norm)
            else:
                self.pyramid = NASFPN(self.maps.channels, pyramid.width, pyramid.norm, pyramid.repeats)
        self._strides = strides = [pyramid.strides[0] * 2**level for level in range(config.levels)]
        # Sides that the maps of a pyramid without its own resizing meet in.
        self.multiple = strides[-1] if isinstance(backbone, SpineNet) else 32
        if config.kind == "retinanet":
            scales = [config.anchor_size * 2 ** (part / config.anchor_scales) for part in range(config.anchor_scales)]
            sizes = tuple(tuple(scale * stride for scale in scales) for stride in strides)
            generator = AnchorGenerator(sizes, (config.anchor_ratios,) * len(sizes))
            places = generator.num_anchors_per_location()[0]
            head: nn.Module = RetinaNetHead(pyramid.width, places, num_classes, norm_layer=norm_layer(pyramid.norm))
            model: type[nn.Module] = RetinaNet
        else:
            generator = AnchorGenerator(tuple((float(stride),) for stride in strides), ((1.0,),) * len(strides))
            head = _fcos_head(pyramid.width, num_classes, config.convs)
            model = FCOS
        if config.kind == "retinanet":
            _of_length(head, config)
        self.head = head
        self.anchors = generator
        self.coder = parts.BoxCoder((1.0, 1.0, 1.0, 1.0)) if config.kind == "retinanet" else parts.BoxLinearCoder(True)
        # Only for its matching and its postprocessing; a list, so that its weights are not counted twice.
        plain = config.soft_nms is None  # else all boxes are kept for it
        settings: dict[str, Any] = {"score_thresh": config.score, "nms_thresh": config.nms if plain else 1.0}
        settings["detections_per_img"] = config.boxes if plain else 1000
        self._rules = [model(_Carrier(pyramid.width), num_classes, anchor_generator=generator, head=head, **settings)]

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = self.pyramid(self.maps(x))
        for module in self.head.modules():
            if isinstance(module, LevelNorm):
                module.begin()
        found: dict[str, torch.Tensor] = self.head(maps)
        self._shapes = [tuple(item.shape[2:]) for item in maps]
        return found

    def places(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The anchors of every level of the last forward pass, float32 [A, 4] each; they depend on the sizes alone.

        A level's places lie one stride apart. (Torchvision divides the image by the map, which slides them off where a side is
        no multiple of the stride.)
        """
        device = images.device
        self.anchors.set_cell_anchors(torch.float32, device)
        apart = [torch.tensor(stride, dtype=torch.int64, device=device) for stride in self._strides]
        places: list[torch.Tensor] = self.anchors.grid_anchors([list(s) for s in self._shapes], [[s, s] for s in apart])
        return places

    def losses(
        self, outputs: dict[str, torch.Tensor], images: torch.Tensor, targets: Targets
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Sums of the parts of the loss over some images, and what to divide them by (matched anchors)."""
        anchors = self.places(images)
        if self.config.kind == "retinanet":
            return retina_losses(outputs, torch.cat(anchors), targets, self.coder, self.config.loss)
        rules: Any = self._rules[0]
        floats = {key: at_least_float32(value) for key, value in outputs.items()}
        parts = rules.compute_loss(targets, floats, [torch.cat(anchors)] * len(targets), [len(level) for level in anchors])
        return {
            "classes": parts["classification"],
            "corners": parts["bbox_regression"],
            "centres": parts["bbox_ctrness"],
        }, parts["matched"]

    def boxes(
        self, outputs: dict[str, torch.Tensor], images: torch.Tensor, alone: bool = True
    ) -> list[dict[str, torch.Tensor]]:
        """What is said of every image: `boxes` float32 [k, 4] in pixels of the net's input, `labels` and `scores` [k].

        Args:
            alone: False where `merged` follows, which lowers scores (Soft-NMS) once, for all scales together.
        """
        anchors = self.places(images)
        counts, side = [len(level) for level in anchors], int(images.shape[2])
        split = {key: list(value.float().split(counts, dim=1)) for key, value in outputs.items()}
        rules: Any = self._rules[0]
        size = (side, side)
        found: list[dict[str, torch.Tensor]] = rules.postprocess_detections(
            split, [anchors] * len(images), [size] * len(images)
        )
        if self.config.soft_nms is not None and alone:
            found = [soft_nms(item, self.config.soft_nms, self.config.score, self.config.boxes) for item in found]
        return found


class _Carrier(nn.Module):
    """Stands where torchvision's detectors want a backbone."""

    def __init__(self, width: int):
        super().__init__()
        self.out_channels = width


def _fcos_head(width: int, num_classes: int, convs: int) -> nn.Module:
    """Torchvision's, whose losses are sums, with the number of matched places beside them."""
    from torchvision.models.detection.fcos import FCOSHead

    class SummedHead(FCOSHead):
        def compute_loss(self, targets: Any, head_outputs: Any, anchors: Any, matched_idxs: Any) -> dict[str, torch.Tensor]:
            matched = (torch.stack(matched_idxs) >= 0).sum()
            means = super().compute_loss(targets, head_outputs, anchors, matched_idxs)
            return {key: value * matched.clamp(min=1) for key, value in means.items()} | {"matched": matched}

    return SummedHead(width, 1, num_classes, convs)


def _of_length(head: nn.Module, config: DetectorConfig) -> None:
    """Torchvision's RetinaNet heads have four convolutions each, whatever one wants, and one norm for all levels; begun as
    those are."""
    from torchvision.ops import Conv2dNormActivation

    width, norm = config.pyramid.width, norm_layer(config.pyramid.norm)
    if config.pyramid.norm == "batch" and config.level_norms:
        norm = partial(LevelNorm, levels=config.levels)
    for part in (head.classification_head, head.regression_head):
        layers = [Conv2dNormActivation(width, width, norm_layer=norm) for _ in range(config.convs)]
        for layer in layers:
            nn.init.normal_(layer[0].weight, std=0.01)
        part.conv = nn.Sequential(*layers)  # type: ignore[union-attr]


def soft_nms(found: dict[str, torch.Tensor], sigma: float, least: float, most: int) -> dict[str, torch.Tensor]:
    """Soft-NMS (Bodla et al., ICCV 2017), Gaussian: overlapping boxes of a class lose score instead of going."""
    from torchvision.ops import box_iou

    boxes, labels, scores = found["boxes"], found["labels"], found["scores"].clone()
    kept: list[int] = []
    same = (labels[:, None] == labels[None]).float() * box_iou(boxes, boxes)
    open_ = torch.ones_like(scores, dtype=torch.bool)
    while len(kept) < most and bool(open_.any()):
        best = int(torch.where(open_, scores, -1.0).argmax())
        if scores[best] < least:
            break
        kept.append(best)
        open_[best] = False
        scores = torch.where(open_, scores * torch.exp(-(same[best] ** 2) / sigma), scores)
    index = torch.tensor(kept, dtype=torch.int64, device=boxes.device)
    return {"boxes": boxes[index], "labels": labels[index], "scores": scores[index]}


def merged(parts: list[dict[str, torch.Tensor]], config: DetectorConfig) -> dict[str, torch.Tensor]:
    """What was said of one image at several scales, as one answer: non-maximum suppression over all of it."""
    if len(parts) == 1:
        return parts[0]
    from torchvision.ops import batched_nms

    found = {key: torch.cat([part[key] for part in parts]) for key in ("boxes", "labels", "scores")}
    if config.soft_nms is None:
        kept = batched_nms(found["boxes"], found["scores"], found["labels"], config.nms)[: config.boxes]
        found = {key: value[kept] for key, value in found.items()}
    else:
        found = soft_nms(found, config.soft_nms, config.score, config.boxes)
    return {**found, "finite": torch.stack([part["finite"] for part in parts]).all()}


class Segmenter(DenseNet):
    """float [n, 3, S, S] -> logits float [n, C, S, S]."""

    def __init__(self, backbone: nn.Module, num_classes: int, config: SegmenterConfig, noise: NoiseSource):
        super().__init__()
        self.config, self.noise, self.num_classes = config, noise, num_classes
        pyramid = config.pyramid
        if isinstance(backbone, SpineNet):
            raise ConfigError("spinenet begins at stride 8, too coarse for masks; choose another net")
        if config.kind == "deeplabv3":
            from torchvision.models.segmentation.deeplabv3 import DeepLabHead

            self.maps = Maps(backbone, pyramid.strides[-1:])
            self.head: nn.Module = DeepLabHead(self.maps.channels[0], num_classes)
            return
        self.maps = Maps(backbone, pyramid.strides)
        width = pyramid.width
        if pyramid.name == "fpn":
            self.pyramid: nn.Module = FPN(self.maps.channels, width, 0, pyramid.norm)
        else:
            self.pyramid = NASFPN(self.maps.channels, width, pyramid.norm, pyramid.repeats)
        layer = norm_layer(pyramid.norm) or (lambda channels: nn.Identity())
        convs: list[nn.Module] = []
        for _ in range(config.convs):
            convs += [nn.Conv2d(width, width, 3, 1, 1, bias=pyramid.norm == "none"), layer(width), nn.ReLU(inplace=True)]
        self.head = nn.Sequential(*convs, nn.Conv2d(width, num_classes, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.maps(x)
        if self.config.kind == "fpn":
            levels = self.pyramid(maps)
            fine = levels[0]
            for level in levels[1:]:
                fine = fine + F.interpolate(level, size=fine.shape[2:], mode="bilinear", align_corners=False)
            maps = [fine]
        logits = self.head(maps[0])
        return F.interpolate(at_least_float32(logits), size=x.shape[2:], mode="bilinear", align_corners=False)

    def losses(
        self, outputs: torch.Tensor, images: torch.Tensor, targets: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The sum of the pixels' cross-entropy, and how many pixels count. targets uint8 [n, S, S], 255: none."""
        wanted = targets.long()
        total = F.cross_entropy(at_least_float32(outputs), wanted, ignore_index=255, reduction="sum")
        return {"pixels": total}, (wanted != 255).sum()
