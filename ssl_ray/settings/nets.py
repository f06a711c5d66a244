"""Settings of nets: backbones, heads, and the loss that belongs to a head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ssl_ray.config import Config
from ssl_ray.named_files import WeightsFile

BLOCKS: dict[int, tuple[int, int, int, int]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}


BOTTLENECK = 50
"""The first depth with three convolutions a block; shallower ones have two."""


Norm = Literal["batch", "lrn", "none"]


VGG = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Convolutions of the five blocks (Simonyan and Zisserman, ICLR 2015, table 1)."""


@dataclass(frozen=True)
class Size:
    outputs: int  # channels of every output
    scale: float  # of all widths
    alpha: float  # share of the channels in which maps are resampled
    repeats: int


SIZES = {
    "49S": Size(128, 0.65, 0.5, 1),
    "49": Size(256, 1.0, 0.5, 1),
    "96": Size(256, 1.0, 0.5, 2),
    "143": Size(256, 1.0, 1.0, 3),
    "190": Size(512, 1.3, 1.0, 4),
}


SPINE_LEVELS = (3, 4, 5, 6, 7)


MAX_WIDTH = 2**16
"""Largest width of a fully connected layer."""


Rate = Annotated[float, Field(ge=0, lt=1)]


class NetConfig(Config):
    # small_resnet, resnet:DEPTH (SimCLRv2's), alexnet, vgg:DEPTH, spinenet:SIZE, timm:NAME or torchvision:NAME
    name: str = "small_resnet"
    multiplier: Annotated[float, Field(gt=0, le=1024)] = 1.0  # resnet:DEPTH, alexnet, vgg:DEPTH, spinenet:SIZE: of all widths
    selective_kernels: bool = False  # resnet:DEPTH, 50 and deeper
    width: Annotated[int, Field(ge=1, le=2**20)] = 16  # small_resnet: channels of the first stage
    blocks: Annotated[int, Field(ge=1, le=1000)] = 1  # small_resnet: blocks a stage
    stem_stride: Annotated[int, Field(ge=1, le=64)] = 1  # small_resnet, alexnet (the paper's: 2 in the pretext, 4 in transfer)
    norm: Norm = "batch"  # alexnet, vgg:DEPTH; lrn: AlexNet's response normalisation
    grid: Annotated[int, Field(ge=1, le=64)] = 1  # alexnet, vgg:DEPTH: cells a side that the last map is averaged to
    # Widths of fully connected layers below the classifier.
    hidden: tuple[Annotated[int, Field(ge=1, le=MAX_WIDTH)], ...] = ()
    # For 32 pixel images; EfficientNets: two stages at stride 1; resnet:DEPTH: a 3x3 stem, no pooling; alexnet: a 3x3 stem.
    small_image: bool = False
    bn_momentum: Annotated[float, Field(gt=0, le=1)] | None = None  # torch's sense: the share of the new batch
    dropout: Rate = 0.0  # before the classifier
    stochastic_depth: Rate = 0.0  # rate * block / blocks, counted from zero, as in the released code
    projection: Annotated[int, Field(ge=0, le=3)] = 0  # layers of a pretrained projection head that stay below the classifier
    zero_head: bool = False  # the classifier begins at zero, as SimCLRv2's does, and not at random
    head: Literal["linear", "library"] = "linear"  # library: the library's own classifier, whole, to label with
    init: Literal["random", "imagenet"] = "random"
    weights: WeightsFile = None  # a .safetensors, .pth or .pt file for the backbone

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        family, _, rest = name.partition(":")
        if family == "resnet" and rest:
            if not rest.isdecimal() or int(rest) not in BLOCKS:
                raise ValueError(f"resnet:DEPTH has the depths {', '.join(map(str, BLOCKS))}")
        elif family == "vgg" and rest:
            if not rest.isdecimal() or int(rest) not in VGG:
                raise ValueError(f"vgg:DEPTH has the depths {', '.join(map(str, VGG))}")
        elif family == "spinenet" and rest:
            if rest not in SIZES:
                raise ValueError(f"spinenet:SIZE has the sizes {', '.join(SIZES)}")
        elif name not in ("small_resnet", "alexnet") and (family not in ("timm", "torchvision") or not rest):
            known = "small_resnet, resnet:DEPTH, alexnet, vgg:DEPTH, spinenet:SIZE, timm:NAME or torchvision:NAME"
            raise ValueError(f"a net is {known}")
        return name

    @model_validator(mode="after")
    def _consistent(self) -> NetConfig:
        family, _, depth = self.name.partition(":")
        if self.selective_kernels and (family != "resnet" or int(depth) < BOTTLENECK):
            raise ValueError(f"net.selective_kernels belongs to resnet:{BOTTLENECK} and deeper, not to {self.name}")
        if family in ("resnet", "alexnet", "vgg", "spinenet") and self.stochastic_depth:
            raise ValueError(f"{self.name} has no stochastic depth; set net.stochastic_depth=0")
        if self.norm == "lrn" and family != "alexnet":
            raise ValueError(f"net.norm=lrn belongs to alexnet, not to {self.name}")
        if self.hidden and self.projection:
            raise ValueError("net.hidden and net.projection exclude each other; give one")
        return self

    @property
    def begins_elsewhere(self) -> bool:
        """Return whether training starts from weights that were trained before."""
        return self.weights is not None or self.init != "random"


class ProjectionConfig(Config):
    layers: Annotated[int, Field(ge=1, le=4)] = 3
    dim: Annotated[int, Field(ge=2, le=2**16)] = 128  # of the output; hidden layers are as wide as the encoder's features
    norm: bool = True  # SimCLRv2: dense without bias, then batch norm; False, MoCo v2: dense with bias


class LayerConfig(Config):
    name: str | None = None  # a module of the backbone (conv4, layers.3); None: what the backbone gives, pooled
    grid: Annotated[int, Field(ge=1, le=256)] | None = 1  # side that a map is pooled to; None: the map as it is
    pool: Literal["average", "max"] = "average"
    normalise: bool = False  # to length one


class PuzzleHeadConfig(Config):
    tile: Annotated[int, Field(ge=1, le=2**16)] = 1024  # fc6, of every tile alone
    hidden: Annotated[int, Field(ge=1, le=2**16)] = 4096  # fc7, of all tiles
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    norm: bool = False  # batch norm after fc6 and fc7, instead of the released code's none
    layer: LayerConfig = LayerConfig()  # what of the backbone enters fc6; AlexNet's is pool5, whole


class HOGConfig(Config):
    """The parameters of the paper's CC+HOG arm are not known; these are Dalal and Triggs' (CVPR 2005) but for the cell."""

    orientations: Annotated[int, Field(ge=1, le=1024)] = 9
    cell: Annotated[int, Field(ge=1, le=1024)] = 7  # pixels
    block: Annotated[int, Field(ge=1, le=1024)] = 2  # cells


PyramidNorm = Literal["batch", "group", "none"]


LEVELS = 5


class BoxLossConfig(Config):
    """Defaults: the released detection code (RetinaNet)."""

    alpha: Annotated[float, Field(ge=0, le=1)] = 0.25
    gamma: Annotated[float, Field(ge=0)] = 1.5
    corners: Literal["huber", "giou"] = "huber"
    delta: Annotated[float, Field(gt=0)] = 0.1  # of the Huber loss
    box_weight: Annotated[float, Field(ge=0)] = 50.0  # of the Huber loss, a mean over four corners; giou: 1 is usual
    match: Annotated[float, Field(gt=0, lt=1)] = 0.5  # IoU from which an anchor looks for a box
    unmatch: Annotated[float, Field(gt=0, lt=1)] = 0.5  # below, it is background; between the two it does not count
    # released: every box gets the anchor that overlaps it most; torchvision: only where that anchor prefers no other box.
    forced: Literal["released", "torchvision"] = "released"


class PyramidConfig(Config):
    name: Literal["fpn", "nas-fpn"] = "fpn"
    strides: tuple[Annotated[int, Field(ge=1)], ...] = (8, 16, 32)  # of the backbone's maps that enter, finest first
    width: Annotated[int, Field(ge=4, le=8192)] = 256
    norm: PyramidNorm = "batch"  # of pyramid and head; the backbone has its own
    repeats: Annotated[int, Field(ge=1, le=100)] = 7  # nas-fpn

    @model_validator(mode="after")
    def _doubling(self) -> PyramidConfig:
        if not self.strides or any(b != 2 * a for a, b in zip(self.strides, self.strides[1:], strict=False)):
            raise ValueError("pyramid.strides is a row of strides, each twice the one before, such as 8, 16, 32")
        if self.name == "nas-fpn" and len(self.strides) > LEVELS:
            raise ValueError(f"nas-fpn has {LEVELS} levels; give at most as many pyramid.strides")
        return self


class DetectorConfig(Config):
    kind: Literal["retinanet", "fcos"] = "retinanet"
    pyramid: PyramidConfig = PyramidConfig()
    levels: Annotated[int, Field(ge=1, le=7)] = 5  # of the pyramid: those of the backbone, and smaller ones above
    convs: Annotated[int, Field(ge=0, le=100)] = 4  # of the head, before what it says
    level_norms: bool = True  # retinanet: batch norms of the head are one a level, as in the released code
    anchor_size: Annotated[float, Field(gt=0)] = 4.0  # retinanet: side of the smallest anchor, in strides
    anchor_scales: Annotated[int, Field(ge=1, le=100)] = 3  # retinanet: sizes an octave
    anchor_ratios: tuple[Annotated[float, Field(gt=0)], ...] = (0.5, 1.0, 2.0)  # retinanet: height by width
    loss: BoxLossConfig = BoxLossConfig()
    score: Annotated[float, Field(ge=0, lt=1)] = 0.05  # boxes below are never said
    nms: Annotated[float, Field(gt=0, lt=1)] = 0.5  # IoU from which two boxes of a class are one
    soft_nms: Annotated[float, Field(gt=0)] | None = None  # sigma of Soft-NMS (0.3 in the paper, recalled); None: plain
    boxes: Annotated[int, Field(ge=1)] = 100  # said of an image, at most

    @model_validator(mode="after")
    def _levels(self) -> DetectorConfig:
        if self.levels < len(self.pyramid.strides):
            raise ValueError(f"levels={self.levels} are fewer than pyramid.strides ({len(self.pyramid.strides)})")
        if self.pyramid.name == "nas-fpn" and self.levels != LEVELS:
            raise ValueError(f"nas-fpn has {LEVELS} levels, not {self.levels}")
        if not self.anchor_ratios:
            raise ValueError("anchor_ratios is empty; give at least one, such as 1.0 for squares")
        if self.kind == "fcos" and self.loss != BoxLossConfig():
            raise ValueError("fcos has losses of its own (torchvision's); leave head.loss as it is")
        if self.kind == "fcos" and self.pyramid.width % 32:
            raise ValueError(
                f"fcos norms its head in 32 groups; set pyramid.width to a multiple of 32, not {self.pyramid.width}"
            )
        return self


class SegmenterConfig(Config):
    kind: Literal["fpn", "deeplabv3"] = "fpn"
    pyramid: PyramidConfig = PyramidConfig(strides=(4, 8, 16, 32))
    convs: Annotated[int, Field(ge=0, le=100)] = 3  # fpn: of the head; the released code has three


DIMENSIONS = 9600
"""Of a probed layer, at most: maps are pooled to the largest side whose vector is no longer (the usual protocol's 9,000 to
9,600)."""
