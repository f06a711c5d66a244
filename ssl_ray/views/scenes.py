"""Views of images in which something stands: boxes and masks move along with the pixels.

Implements: Augment-S1 to S4 of *Rethinking Pre-training and Self-training* (Zoph et al., NeurIPS 2020), Table 1:

    S1    flips and crops, small scale jitter
    S2    S1 and AutoAugment: policy v0 for detection of the released code (autoaugment_utils.py), which has v0 to v3; which one
          the paper took is not verified
    S3    S2 with large scale jitter
    S4    flips and crops, RandAugment, large scale jitter

Scale jitter as in the released code: the image is resized, its aspect kept, to fit into s times the output size, with s drawn
from a range; what is larger than the output is cut at random, what is smaller is padded at the right and below.

Not verified, and so settings: the ranges of jitter (0.8-1.2 and 0.5-2.0 are recalled; released configurations agree with them
in part), RandAugment's magnitude of 10 (recalled) and its number of operations. The released detection code holds no
RandAugment; its operations here are those of classification that can move boxes.

Differs from the code: distances in pixels, which it gives for images of about 640, shrink with the image (`reference`). Boxes
of less than a pixel are left out.

Composed from torchvision's functionals on tv_tensors, one image at a time: its own RandAugment and AutoAugment refuse boxes and
masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch

from ssl_ray.settings.views import AugmentConfig, Preprocess
from ssl_ray.views.decode import fit_size, mean_colour

IGNORE = 255
"""A pixel of a mask that counts neither in a loss nor in a metric."""

FILL = 128.0
"""What geometric operations uncover, as in the released code."""


@dataclass(frozen=True)
class Scene:
    """An image and what stands in it."""

    image: torch.Tensor  # uint8 [3, H, W]
    boxes: torch.Tensor | None = None  # float32 [k, 4], corners x1 y1 x2 y2 in pixels
    labels: torch.Tensor | None = None  # int64 [k]
    mask: torch.Tensor | None = None  # uint8 [H, W], classes; IGNORE where there is none

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return int(self.image.shape[1]), int(self.image.shape[2])


def view(scene: Scene, config: AugmentConfig, preprocess: Preprocess, draw: np.random.Generator) -> Scene:
    """A random view of the size that the net takes, square; with `none`, the view of labelling."""
    if config.name != "none":
        if config.name in ("S2", "S3"):
            scene = autoaugment(scene, config, draw)
        elif config.name == "S4":
            scene = randaugment(scene, config, draw)
        if config.flip and draw.random() < 0.5:
            scene = flip(scene)
    return resize_and_crop(scene, config, preprocess, draw)


def flip(scene: Scene) -> Scene:
    """Left and right change places."""
    boxes = scene.boxes
    if boxes is not None:
        width = scene.size[1]
        boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)
    mask = None if scene.mask is None else scene.mask.flip(1)
    return replace(scene, image=scene.image.flip(2), boxes=boxes, mask=mask)


def resize_and_crop(scene: Scene, config: AugmentConfig, preprocess: Preprocess, draw: np.random.Generator) -> Scene:
    """Scale jitter, then a cut or a margin."""
    from torchvision.transforms.v2 import functional as F

    low, high = config.scales
    size, (height, width) = preprocess.size, scene.size
    target = max(1, round(size * (low + (high - low) * draw.random())))
    new_width, new_height = fit_size(width, height, target)
    left = int(draw.integers(0, max(0, new_width - size) + 1))
    top = int(draw.integers(0, max(0, new_height - size) + 1))
    inner_width, inner_height = min(size, new_width), min(size, new_height)
    mode = F.InterpolationMode(preprocess.interpolation)
    image = F.resize(scene.image, [new_height, new_width], interpolation=mode, antialias=True)
    square = torch.from_numpy(mean_colour(preprocess))[:, None, None].repeat(1, size, size)
    square[:, :inner_height, :inner_width] = image[:, top : top + inner_height, left : left + inner_width]
    boxes, labels, mask = scene.boxes, scene.labels, scene.mask
    if boxes is not None and labels is not None:
        factor = torch.tensor([new_width / width, new_height / height] * 2)
        boxes = boxes * factor - torch.tensor([left, top] * 2)
        boxes, labels = clipped(boxes, labels, inner_width, inner_height)
    if mask is not None:
        # Exact: the other takes pixels by their corners, and the mask would slide against the image.
        small = F.resize(mask[None], [new_height, new_width], interpolation=F.InterpolationMode.NEAREST_EXACT)[0]
        mask = torch.full((size, size), IGNORE, dtype=torch.uint8)
        mask[:inner_height, :inner_width] = small[top : top + inner_height, left : left + inner_width]
    return Scene(square, boxes, labels, mask)


def clipped(boxes: torch.Tensor, labels: torch.Tensor, width: int, height: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes cut to the image; those of which less than a pixel is left go."""
    high = torch.tensor([width, height, width, height], dtype=boxes.dtype)
    boxes = torch.minimum(boxes.clamp(min=0), high)
    kept = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(dim=1)
    return boxes[kept], labels[kept]


AUTOAUGMENT: tuple[tuple[tuple[str, float, float], ...], ...] = (
    (("TranslateX", 0.6, 4), ("Equalize", 0.8, 10)),
    (("BoxTranslateY", 0.2, 2), ("Cutout", 0.8, 8)),
    (("Sharpness", 0.0, 8), ("ShearX", 0.4, 0)),
    (("ShearY", 1.0, 2), ("BoxTranslateY", 0.6, 6)),
    (("Rotate", 0.6, 10), ("Color", 1.0, 6)),
)
"""Policy v0 of *Learning Data Augmentation Strategies for Object Detection* (Zoph et al., ECCV 2020), as in the released code:
operation, probability, level. One line is drawn an image."""

RANDAUGMENT = (
    "AutoContrast", "Equalize", "Posterize", "Solarize", "SolarizeAdd", "Color", "Contrast", "Brightness", "Sharpness",
    "Cutout", "Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY",
)  # fmt: skip


def autoaugment(scene: Scene, config: AugmentConfig, draw: np.random.Generator) -> Scene:
    """One line of the policy; operations on the insides of boxes leave masks alone, which have none."""
    for name, probability, level in AUTOAUGMENT[int(draw.integers(len(AUTOAUGMENT)))]:
        if draw.random() < probability or name.startswith("Box"):
            scene = apply(scene, name, level, config.reference, draw, probability)
    return scene


def randaugment(scene: Scene, config: AugmentConfig, draw: np.random.Generator) -> Scene:
    """`layers` operations, drawn with replacement and always applied."""
    for index in draw.integers(len(RANDAUGMENT), size=config.layers):
        scene = apply(scene, RANDAUGMENT[int(index)], config.magnitude, config.reference, draw)
    return scene


def apply(scene: Scene, name: str, level: float, reference: int, draw: np.random.Generator, probability: float = 1.0) -> Scene:
    """One operation at a level of 0 to 10, its direction drawn."""
    share = level / 10
    pixels = max(scene.size) / reference
    sign = 1.0 if draw.random() < 0.5 else -1.0
    if name in GEOMETRIC:
        amount = {"Rotate": 30.0, "ShearX": 0.3, "ShearY": 0.3}.get(name, 250.0 * pixels)
        return moved(scene, name, sign * share * amount)
    if name == "BoxTranslateY":
        # A third of the probability, box by box, so that few boxes near each other are touched.
        return boxes_moved(scene, sign * share * 120.0 * pixels, probability / 3, draw)
    if name == "Cutout":
        return replace(scene, image=cut_out(scene.image, share * 100.0 * pixels, draw))
    return replace(scene, image=colours()[name](scene.image, share))


GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")


def moved(scene: Scene, name: str, value: float) -> Scene:
    """Rotate (degrees), shear (a share) or move (pixels) an image with its boxes and mask.

    A rotation keeps the center, a shear the first row or column. A box becomes the one around its moved corners, clipped.
    """
    from torchvision.transforms.v2 import functional as F

    move = [value if name == "TranslateX" else 0.0, value if name == "TranslateY" else 0.0]
    lean = math.degrees(math.atan(value))
    shear = [lean if name == "ShearX" else 0.0, lean if name == "ShearY" else 0.0]
    angle = value if name == "Rotate" else 0.0
    # translate takes whole pixels in some of torchvision's kernels, and so in all of them here.
    center = None if name == "Rotate" else [0.0, 0.0]
    settings = {"angle": angle, "translate": [round(part) for part in move], "scale": 1.0, "shear": shear, "center": center}
    image = F.affine(scene.image, **settings, fill=[FILL] * 3)
    boxes, labels, mask = scene.boxes, scene.labels, scene.mask
    if boxes is not None and labels is not None and len(boxes):
        from torchvision.tv_tensors import BoundingBoxes

        height, width = scene.size
        around = F.affine(BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)), **settings)
        boxes, labels = clipped(around.as_subclass(torch.Tensor), labels, width, height)
    if mask is not None:
        mask = F.affine(mask[None], **settings, fill=[IGNORE])[0]
    return replace(scene, image=image, boxes=boxes, labels=labels, mask=mask)


def boxes_moved(scene: Scene, value: float, probability: float, draw: np.random.Generator) -> Scene:
    """What is inside some boxes moves up or down; the boxes stay."""
    if scene.boxes is None or not len(scene.boxes):
        return scene
    image, shift = scene.image.clone(), round(value)
    for box, chance in zip(scene.boxes.tolist(), draw.random(len(scene.boxes)), strict=True):
        left, top, right, bottom = (round(side) for side in box)
        inside = scene.image[:, top:bottom, left:right]
        height = inside.shape[1]
        if chance >= probability or not inside.numel():
            continue
        new = torch.full_like(inside, int(FILL))
        if 0 <= shift < height:
            new[:, shift:] = inside[:, : height - shift]
        elif -height < shift < 0:
            new[:, :shift] = inside[:, -shift:]
        image[:, top:bottom, left:right] = new
    return replace(scene, image=image)


def cut_out(image: torch.Tensor, half: float, draw: np.random.Generator) -> torch.Tensor:
    """A grey square of side 2 * half around a drawn centre."""
    height, width = image.shape[1:]
    y, x, half = int(draw.integers(height)), int(draw.integers(width)), round(half)
    image = image.clone()
    image[:, max(0, y - half) : y + half, max(0, x - half) : x + half] = int(FILL)
    return image


@cache
def colours() -> dict[str, Callable[[torch.Tensor, float], torch.Tensor]]:
    """Operations on pixels alone, at a share of 0 to 1 of their range, with the released code's ranges."""
    from torchvision.transforms.v2 import functional as F

    return {
        "AutoContrast": lambda image, share: F.autocontrast(image),
        "Equalize": lambda image, share: F.equalize(image),
        "Posterize": lambda image, share: F.posterize(image, int(share * 4)) if int(share * 4) else torch.zeros_like(image),
        "Solarize": lambda image, share: torch.where(image.int() < int(share * 256), image, 255 - image),
        "SolarizeAdd": lambda image, share: torch.where(
            image < 128, (image.int() + int(share * 110)).clamp(0, 255).to(torch.uint8), image
        ),
        "Color": lambda image, share: F.adjust_saturation(image, 0.1 + 1.8 * share),
        "Contrast": lambda image, share: F.adjust_contrast(image, 0.1 + 1.8 * share),
        "Brightness": lambda image, share: F.adjust_brightness(image, 0.1 + 1.8 * share),
        "Sharpness": lambda image, share: F.adjust_sharpness(image, 0.1 + 1.8 * share),
    }
