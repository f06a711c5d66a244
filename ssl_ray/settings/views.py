"""Settings of views: how a picture is changed before a net sees it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from ssl_ray.config import Config
from ssl_ray.permutations import TILES

Center = Annotated[float, Field(ge=-1000, le=1000)]


Deviation = Annotated[float, Field(ge=1e-6, le=1000)]
"""Standard deviation that pixels are divided by."""


class Preprocess(Config):
    """How an image becomes the net's input when nothing is random: in labelling, evaluation and inference."""

    size: Annotated[int, Field(ge=8)] = 28  # pixels, square
    # whole: resized to the square; center: its middle; fit: all of it at its own aspect, in the upper left corner.
    crop: Literal["whole", "center", "fit"] = "whole"
    crop_share: Annotated[float, Field(gt=0, le=1)] | None = None  # of the short side; None: size / (size + 32), released code
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mean: tuple[Center, Center, Center] = (0.5, 0.5, 0.5)
    std: tuple[Deviation, Deviation, Deviation] = (0.5, 0.5, 0.5)


class RandAugmentConfig(Config):
    num_ops: Annotated[int, Field(ge=0)] = 2
    magnitude: Annotated[float, Field(ge=0)] = 27.0
    scale: Literal["code", "torchvision"] = "code"
    pool: Literal["code", "paper", "geometric"] = "code"  # geometric: shifts, turns and shears alone
    translate: Annotated[float, Field(ge=0)] = 100.0  # pixels at level 10
    cutout: Annotated[float, Field(ge=0)] = 40.0  # half side in pixels at level 10


class ViewConfig(Config):
    """Input noise. With everything off, training sees the same view as labelling does."""

    crop: Literal["none", "pad", "resized"] = "none"  # pad: reflect, then cut; resized: the Inception crop
    pad: Annotated[int, Field(ge=0)] = 4  # pixels
    flip: bool = False
    randaugment: RandAugmentConfig | None = None
    cutout: Annotated[int, Field(ge=0)] = 0  # half side in pixels of one more cutout, after RandAugment


def check_pad(view: ViewConfig, size: int) -> None:
    """Raise ValueError if a reflection is wider than the images that it extends."""
    if view.crop == "pad" and view.pad >= size:
        raise ValueError(f"view.pad={view.pad} reflects images of {size} pixels; set it below {size}")


Share = Annotated[float, Field(ge=0, le=1)]


Sigma = Annotated[float, Field(gt=0, le=1000)]


class SimCLRViewConfig(Config):
    crop: Share = 0.08  # least area of the crop; 1: the whole image
    decode_crops: bool = False  # two crops are drawn while decoding, from the full picture: for large photos
    flip: bool = True
    jitter: Share = 0.8  # probability
    strength: Annotated[float, Field(ge=0)] = 1.0  # of the jitter: 0.8 s for three of them, 0.2 s for hue; CIFAR: 0.5
    hue: Annotated[float, Field(ge=0, le=0.5)] | None = None  # None: 0.2 * strength
    grey: Share = 0.2
    blur: Share = 0.5  # the authors leave it out on small images
    sigma: tuple[Sigma, Sigma] = (0.1, 2.0)  # pixels

    @field_validator("sigma")
    @classmethod
    def _ascending(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError("sigma takes two numbers, the smaller one first")
        return value


SIDE = 3


TILE_SHARE = 64 / 85
"""Of a cell, by its tile."""


SMALLEST = 4
"""Pixels of a tile that still shows something."""


class JigsawViewConfig(Config):
    tile: Annotated[int, Field(ge=1)] | None = None  # pixels; None: 64/85 of a cell
    jitter: Annotated[int, Field(ge=0)] | None = None  # largest offset of a tile in its cell; None: all that its cell leaves
    shift: Annotated[int, Field(ge=0)] = 2  # largest further offset of each colour channel; less where the cell leaves less
    grey: Share = 0.7  # of the images. The paper says 0.7, the released code of Jigsaw++ 0.5; Jigsaw's notes 0.3
    projected: Share = 0.0  # of the other images, whose green-magenta axis is taken out (the released code: 0.5)
    occluded: Annotated[int, Field(ge=0, le=TILES - 1)] = 2  # at most so many tiles are another image's
    norm: Literal["joint", "channel", "none"] = "joint"  # mean and deviation of a tile: over its channels together, or each
    scale: Annotated[float, Field(gt=0)] = 1.0  # of normalised pixels; the released code: 50, for its Gaussian of 0.01


class Sizes:
    """Cell, tile, and what is left for offsets, in pixels."""

    def __init__(self, image: int, view: JigsawViewConfig):
        """
        Raises:
            ValueError: the image holds no nine tiles of that size.
        """
        self.cell = image // SIDE
        self.tile = view.tile or int(self.cell * TILE_SHARE)
        room = self.cell - self.tile
        if self.tile < SMALLEST or room < 0:
            raise ValueError(
                f"an image of {image} pixels has {SIDE * SIDE} cells of {self.cell}, and tiles of {self.tile} pixels do not "
                f"fit or are smaller than {SMALLEST}; take larger images (preprocess.size), or another view.tile"
            )
        self.shift = min(view.shift, room // 2)  # of a small gap, half at most
        self.jitter = room - self.shift if view.jitter is None else view.jitter
        if self.jitter + self.shift > room:
            raise ValueError(
                f"view.jitter {self.jitter} and view.shift {self.shift} leave cells of {self.cell} with tiles of "
                f"{self.tile}; lower them"
            )


class AugmentConfig(Config):
    """Input noise of images with boxes or masks."""

    name: Literal["none", "S1", "S2", "S3", "S4"] = "S1"
    flip: bool = True  # with one half's chance; none: never
    jitter: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] | None = None  # None: as the name says
    layers: Annotated[int, Field(ge=0)] = 2  # S4: operations of RandAugment an image
    magnitude: Annotated[float, Field(ge=0, le=10)] = 10.0  # S4
    reference: Annotated[int, Field(ge=1)] = 640  # side of images that distances in pixels are meant for

    @property
    def scales(self) -> tuple[float, float]:
        """The least and the largest scale of an image."""
        if self.jitter is not None:
            return self.jitter
        return {"none": (1.0, 1.0), "S1": (0.8, 1.2), "S2": (0.8, 1.2)}.get(self.name, (0.5, 2.0))
